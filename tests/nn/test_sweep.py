"""nn.sweep: one calibration, many compressed models."""

import copy
import sys

import pytest
import torch

from fastlr.nn import compress_llm, perplexity, sweep
from fastlr.nn.compression import Sweep, SweepPoint, calibrate


@pytest.fixture
def model(make_model):
    return make_model("llama")


@pytest.fixture
def text(tokens):
    return tokens.flatten()


def swept(model, text, **options):
    defaults = {"ratios": (0.2, 0.5), "methods": ("svd", "svd_llm"), "samples": 4, "seq_len": 16}
    given = {"calibration": text, "progress": False, **defaults, **options}
    return sweep(model, text, **given)


def test_points_are_those_of_compress_llm(model, text):
    before = copy.deepcopy(model.state_dict())
    found = swept(model, text)
    assert [(p.method, p.ratio) for p in found.points] == [
        ("svd", 0.2),
        ("svd", 0.5),
        ("svd_llm", 0.2),
        ("svd_llm", 0.5),
    ]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert found.dense.perplexity == perplexity(model, text, 16)
    assert found.dense.bytes == sum(
        t.nbytes for t in {id(t): t for t in model.parameters()}.values()
    )
    for point in found.points:
        alone = compress_llm(
            copy.deepcopy(model),
            point.ratio,
            method=point.method,
            samples=4,
            seq_len=16,
            calibration=text,
            progress=False,
        )
        report = alone.fastlr_report
        assert point.perplexity == perplexity(alone, text, 16)
        assert point.ratio_achieved == report.ratio_achieved
        assert (point.parameters, point.bytes) == (
            report.model_after.parameters,
            report.model_after.bytes,
        )


def test_calibration_is_done_once_and_only_where_needed(model, text, monkeypatch):
    calls = []
    module = sys.modules[sweep.__module__]
    real = module.calibrate

    def counted(*arguments, **options):
        calls.append(options["gradients"])
        return real(*arguments, **options)

    monkeypatch.setattr(module, "calibrate", counted)
    swept(model, text, methods="svd")
    assert not calls
    swept(model, text, methods=("svd", "svd_llm"))
    assert calls == [False]
    swept(model, text, methods=("svd_llm", "sparse"), ratios=(0.3,))
    assert calls == [False, True]
    statistics = calibrate(model, text, samples=4, seq_len=16, progress=False)
    swept(model, text, methods=("svd_llm",), calibration=statistics)
    assert len(calls) == 2


def point(method, megabytes, measured):
    return SweepPoint(method, 0.5, 0.5, megabytes, megabytes * 10**6, measured, 0.1)


def test_the_smallest_that_is_good_enough():
    dense = point("dense", 100, 10.0)
    found = Sweep((point("a", 80, 10.2), point("a", 60, 13.0), point("b", 70, 10.5)), dense)
    assert found.smallest(1.05) == found.points[2]
    assert found.smallest(2) == found.points[1]
    assert found.smallest(1.0) == dense
    broken = Sweep((point("a", 80, float("nan")),), dense)
    assert broken.smallest(2) == dense


def test_table_dict_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found = Sweep((point("svd", 80, 10.2), point("svd", 60, 13.0)), point("dense", 100, 10.0))
    assert str(found).splitlines()[1].split() == ["dense", "50.0%", "100.0", "10", "1.000"]
    assert found.to_dict()["points"][1]["perplexity"] == 13.0
    figure = found.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.lines] == ["svd", "dense"]
    assert list(axis.lines[0].get_xdata()) == [60, 80]
    assert list(axis.lines[0].get_ydata()) == [13.0, 10.2]


def test_mistakes_are_found_before_any_work(model, text, monkeypatch):
    def worked(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(sys.modules[sweep.__module__], "perplexity", worked)
    with pytest.raises(ValueError, match=r"ratio must be between 0 and 1, .* got 1.5"):
        swept(model, text, ratios=(0.2, 1.5))
    with pytest.raises(ValueError, match=r"method .*'nothing'"):
        swept(model, text, methods=("svd", "nothing"))
    with pytest.raises(ValueError, match="there must be a ratio and a method"):
        swept(model, text, ratios=())
    with pytest.raises(TypeError, match="model must be a causal language model"):
        sweep(torch.nn.Linear(2, 2), text)
