"""``fastlr compress --plan`` says what ``fastlr compress`` then does."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from fastlr.cli.models import find_model, load_shapes
from fastlr.nn.compression import calibrate
from fastlr.nn.compression.dry_run import plan_compression

SMALL = ["--samples", "4", "--seq-len", "16"]


def _plan(fastlr, *words):
    ran = fastlr("compress", *words, "--plan", "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.mark.parametrize("method", ["auto", "svd_llm", "modegpt"])
def test_the_plan_is_what_is_done(fastlr, tiny_model, text_file, tmp_path, method):
    words = ["--ratio", 0.4, "--method", method, "--calibration", text_file, *SMALL]
    plan = _plan(fastlr, tiny_model, *words)
    assert list(tmp_path.iterdir()) == []
    ran = fastlr("compress", tiny_model, tmp_path / "out", *words, "--json")
    result = json.loads(ran.out)
    report = result["report"]
    for key in ("method", "form", "allocation"):
        assert plan[key] == report[key]
    assert plan["parameters_before"] == report["parameters"]["before"]
    assert plan["model_before"] == report["model"]["before"]
    # Less than the numbers of a rank, a unit or a density's step is left over in each layer.
    step = sum(kind["count"] * sum(kind["shape"]) for kind in plan["layers"])
    assert 0 <= plan["parameters_after"] - report["parameters"]["after"] < step
    assert 0 <= plan["model_after"]["parameters"] - report["model"]["after"]["parameters"] < step
    need = plan["calibration"]
    assert need["samples"] * need["seq_len"] == report["calibration_tokens"]
    assert sum(kind["count"] for kind in plan["layers"]) == len(report["layers"])


@pytest.mark.parametrize(("method", "gradients"), [("svd_llm", False), ("sparse", True)])
def test_the_moments_are_those_of_calibration(tiny_model, method, gradients):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config)
    size = {"samples": 2, "seq_len": 8}
    # The budget is shared between all layers: their moments are there at once.
    options = {"method": method, "allocation": "product", **size}
    plan = plan_compression(shapes, 0.3, **options)
    tokens = torch.arange(64)
    found = calibrate(model, tokens, gradients=gradients, progress=False, **size)
    assert plan.memory["moments"] == found.nbytes()
    assert not plan.estimate
    # Of a model with its weights the same is said.
    assert plan_compression(model, 0.3, **options) == plan


def test_what_is_compressed_and_what_is_left_are_all_matrices(fastlr, tiny_model):
    plan = _plan(fastlr, tiny_model, *SMALL)
    left = {part["name"]: part for part in plan["left"]}
    assert set(left) == {"model.embed_tokens", "lm_head"}
    assert "outside of the blocks" in left["model.embed_tokens"]["reason"]
    # It is tied to the embedding.
    assert "another layer" in left["lm_head"]["reason"]
    matrices = plan["parameters_before"] + left["model.embed_tokens"]["parameters"]
    norms = 5 * 32
    assert plan["model_before"]["parameters"] == matrices + norms


def test_no_weight_is_read(fastlr, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    nan = {name: tensor * math.nan for name, tensor in tensors.items()}
    save_file(nan, broken / "model.safetensors", {"format": "pt"})
    assert {p.device.type for p in load_shapes(find_model(broken)).parameters()} == {"meta"}
    of_nan = _plan(fastlr, broken, *SMALL)
    assert {**of_nan, "path": ""} == {**_plan(fastlr, tiny_model, *SMALL), "path": ""}


def test_the_default_method_and_its_reason(fastlr, tiny_model):
    plain = _plan(fastlr, tiny_model, *SMALL)
    assert plain["method"] == "sparse"
    assert "3.1%" in plain["because"]
    much = _plan(fastlr, tiny_model, "--ratio", 0.8, "--dtype", "bfloat16", *SMALL)
    assert much["method"] == "two_sided"
    assert much["dtype"] == "bfloat16"
    assert "6.2%" in much["because"]
    assert _plan(fastlr, tiny_model, "--method", "svd")["calibration"] is None


def test_files_take_the_place_of_memory(fastlr, tiny_model, tmp_path):
    plain = _plan(fastlr, tiny_model, *SMALL)
    kept = _plan(fastlr, tiny_model, "--checkpoint", tmp_path / "kept", *SMALL)
    on_disk = _plan(fastlr, tiny_model, "--on-disk", *SMALL)
    assert plain["disk"] == {}
    assert kept["disk"] == on_disk["disk"]
    assert kept["disk"]["moments"] == plain["memory"]["moments"]
    assert "model" not in on_disk["memory"]
    assert list(tmp_path.iterdir()) == []


def test_the_plan_for_people(fastlr, tiny_model):
    ran = fastlr("compress", tiny_model, "--plan", *SMALL)
    assert ran.code == 0, ran.err
    for text in ("2 × q_proj (32 × 32)", 'method "sparse"', "15,360 → 12,288", "lm_head"):
        assert text in ran.out


def test_a_plan_for_a_compressed_model_is_refused(fastlr, tiny_model, tmp_path):
    fastlr("compress", tiny_model, tmp_path / "out", "--method", "svd")
    assert "compressed already" in fastlr("compress", tmp_path / "out", "--plan").complaint


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{out}"], "leave OUT away"),
        (["--seq-len", "1000"], "at most 64"),
        (["--form", "factored"], "form must be one of sparse"),
        (["--method", "svd", "--heal-steps", "3"], "nothing to train on"),
    ],
)
def test_what_cannot_be_done_cannot_be_planned(fastlr, tiny_model, tmp_path, words, says):
    small = [] if "--seq-len" in words else SMALL
    given = [word.format(out=tmp_path / "out") for word in words]
    ran = fastlr("compress", tiny_model, *given, "--plan", *small)
    assert ran.code == 2
    assert says in ran.complaint
    assert list(tmp_path.iterdir()) == []
