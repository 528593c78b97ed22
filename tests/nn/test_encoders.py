"""Models without a language modelling head: compressed where targets name their layers."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from fastlr.nn import compress_llm, export_dense, load, sweep
from fastlr.nn.compression import calibrate
from fastlr.nn.modules.base import CompressedLinear

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# The type of the model → sizes of its own, and how many linear layers a block has.
ENCODERS = {
    "bert": ({}, 6),
    "roberta": ({"pad_token_id": 1}, 6),
    "electra": ({"embedding_size": 16}, 6),
    "mpnet": ({}, 6),
    "distilbert": ({"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, 6),
    "deberta-v2": ({"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 8),
    "modernbert": ({"global_attn_every_n_layers": 2, "local_attention": 8}, 4),
    "t5": ({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, 6),
    "llama": ({"num_key_value_heads": 2}, 7),  # a decoder without its head
}
every = pytest.mark.parametrize("architecture", ENCODERS)
WITHOUT_LOSS = [
    "svd",
    "welore",
    "asvd",
    "svd_llm",
    "saes",
    "afm",
    "lord",
    "basis_sharing",
    "modegpt",
    "rocket",
    "cospadi",
]


def model_of(architecture="bert", kind=AutoModel, dtype=torch.float32, **changes):
    sizes, _ = ENCODERS[architecture]
    config = AutoConfig.for_model(architecture, **{**SIZES, **sizes, **changes})
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    if architecture == "t5" and kind is AutoModel:
        from transformers import T5EncoderModel

        model = T5EncoderModel(config)
    else:
        model = kind.from_config(config)
    with torch.no_grad():  # larger than at the start of training, so that layers matter
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    torch.random.set_rng_state(state)
    return model.to(dtype).eval()


def text(*shape):
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(1))


def padded(lengths, pad=0):
    """Sentences of these lengths, one below the other, and which positions they have."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return text(len(lengths), max(lengths)).where(mask, pad), mask.long()


def hidden(model, tokens, **more):
    with torch.no_grad():
        return model(input_ids=tokens, **more).last_hidden_state


def compressed(model, ratio=0.3, **options):
    given = {"targets": "*", "calibration": text(16, 16), "progress": False, **options}
    return compress_llm(model, ratio, **given)


@every
def test_compressed_saved_and_loaded(architecture, tmp_path):
    model, tokens = model_of(architecture), text(2, 16)
    before = hidden(model, tokens)
    report = compressed(model).fastlr_report
    assert (report.method, len(report.layers)) == ("svd_llm", 2 * ENCODERS[architecture][1])
    assert 0.3 <= report.ratio_achieved < 0.34  # whole ranks of layers with 32 inputs
    assert not torch.equal(hidden(model, tokens), before)
    model.save_pretrained(tmp_path)
    # The config of an encoder alone does not tell AutoModel that T5's decoder is missing.
    readers = [load] if architecture == "t5" else [load, AutoModel.from_pretrained]
    for read in readers:
        loaded = read(tmp_path)
        assert type(loaded) is type(model)
        assert torch.equal(hidden(loaded, tokens), hidden(model, tokens))


@every
@pytest.mark.filterwarnings("ignore:compress_llm. ratio=0.1 is not reached")
def test_full_rank_is_the_same_model(architecture):
    model, (tokens, mask) = model_of(architecture), padded([16, 9])
    before = hidden(model, tokens, attention_mask=mask)
    compressed(model, 0.1, method="svd", allocation={"*": 0.0}, calibration=None)
    after = hidden(model, tokens, attention_mask=mask)
    # Two blocks of some ten products each, of 64 terms, with coefficients up to 2.
    scale = float(before.abs().max())
    assert ((after - before) * mask[..., None]).abs().max() <= 4000 * 2.0**-24 * scale


@pytest.mark.parametrize("method", WITHOUT_LOSS)
def test_methods_that_need_no_loss(method):
    model = model_of()
    report = compressed(model, method=method).fastlr_report
    # modegpt knows no parts of BERT by name, and so takes its layers one by one.
    assert 0.25 <= report.ratio_achieved < 0.4
    assert hidden(model, text(2, 16)).isfinite().all()


def test_a_head_of_another_kind(tmp_path):
    model, tokens = model_of(kind=AutoModelForMaskedLM), text(2, 16)
    compressed(model, targets="intermediate.dense")
    assert {layer.name for layer in model.fastlr_report.layers} == {
        f"bert.encoder.layer.{block}.intermediate.dense" for block in range(2)
    }
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.equal(load(tmp_path)(tokens).logits, expected)
        base = AutoModel.from_pretrained(tmp_path)  # the encoder alone
        assert torch.equal(hidden(base, tokens), model.bert(tokens).last_hidden_state)
    plain = export_dense(model)
    assert not [m for m in plain.modules() if isinstance(m, CompressedLinear)]
    # Composed and rounded: twelve products of 64 terms.
    with torch.no_grad():
        off = (plain(tokens).logits - expected).abs().max()
    assert off <= 2000 * 2.0**-24 * float(expected.abs().max())


# ---- what calibration sees ----


def sums_of(model, calls):
    """Σ x xᵀ by layer, over whole forward passes of the model as its users call it."""
    sums = {}

    def listen(name):
        def add(module, args):
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return add

    handles = [
        module.register_forward_pre_hook(listen(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layer" in name
    ]
    for call in calls:
        hidden(model, **call)
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "deberta-v2", "llama"])
def test_padding_is_neither_attended_to_nor_counted(architecture):
    model, lengths = model_of(architecture, dtype=torch.float64), [16, 5, 11]
    tokens, mask = padded(lengths, pad=model.config.pad_token_id)
    batches = [
        {"input_ids": part, "attention_mask": m}
        for part, m in zip(tokens.split(2), mask.split(2), strict=True)
    ]
    found = calibrate(model, batches, targets="*", progress=False)
    assert found.tokens == sum(lengths)
    alone = [{"tokens": row[None, :n]} for row, n in zip(tokens, lengths, strict=True)]
    sums = sums_of(model, alone)
    # DeBERTa's layers of relative positions see no tokens.
    names = {name for name in found.grams if "pos_" not in name}
    assert names <= set(sums)
    for name in names:
        expected = sums[name]
        # Sums of at most 32 rows behind two blocks in float64: 1e4·2⁻⁵³ = 1e-12 of the largest.
        error = (found.grams[name].matrix - expected).abs().max()
        assert error <= 1e-12 * expected.abs().max(), name
    # The control: with the padding counted and attended to, the sums are others.
    wrong = sums_of(model, [{"tokens": tokens}])
    name = min(names)
    assert (wrong[name] - sums[name]).abs().max() > 1e-3 * sums[name].abs().max()


def test_types_of_tokens_are_given_to_models_that_know_them():
    model, tokens = model_of(dtype=torch.float64), text(3, 12)
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight[1].normal_(
            generator=torch.Generator().manual_seed(2)
        )
    types = (torch.arange(12) >= 5).long().expand(3, -1)
    item = {"input_ids": tokens, "token_type_ids": types}
    found = calibrate(model, item, targets="*", progress=False)
    sums = sums_of(model, [{"tokens": tokens, "token_type_ids": types}])
    for name, gram in found.grams.items():
        assert (gram.matrix - sums[name]).abs().max() <= 1e-12 * sums[name].abs().max()
    # One that does not know them is called without.
    calibrate(model_of("distilbert"), item, targets="*", progress=False)
    with pytest.raises(ValueError, match=r"token_type_ids .* shape \(3, 12\), got \(3, 3\)"):
        calibrate(model, {**item, "token_type_ids": types[:, :3]}, targets="*", progress=False)


def test_statistics_serve_several_compressions():
    model = model_of()
    statistics = calibrate(model, text(8, 16), targets="*", progress=False)
    one = compressed(model_of(), calibration=statistics)
    other = compressed(model_of(), calibration=text(8, 16))
    assert torch.equal(hidden(one, text(2, 8)), hidden(other, text(2, 8)))


# ---- what cannot be done ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": None}, r"or, with targets= given, an encoder .* got BertModel"),
        ({"method": "sparse"}, "method='sparse' needs the loss of predicted tokens, which BertM"),
        ({"method": "two_sided"}, "method='two_sided' needs the loss"),
        ({"method": "fwsvd"}, "method='fwsvd' needs the loss"),
        ({"heal_steps": 3}, "heal_steps must be 0: .* which BertModel has no head for"),
        ({"calibration": None}, "calibration must be given: without it a model generates"),
        ({"targets": "q_proj"}, r"targets: no linear layer in the blocks encoder\.layer matches"),
        ({"calibration": text(2, 65)}, "at most 64, the model's longest context, got 65"),
    ],
)
def test_one_sentence(options, says):
    model = model_of()
    before = hidden(model, text(1, 8))
    with pytest.raises(ValueError, match=says):
        compressed(model, **options)
    assert torch.equal(hidden(model, text(1, 8)), before)


def test_positions_that_begin_after_that_of_padding():
    model = model_of("roberta")  # 64 rows, of which the first two stand for no position
    compressed(model, calibration=text(2, 62))
    with pytest.raises(ValueError, match="at most 62, the model's longest context, got 63"):
        compressed(model_of("roberta"), calibration=text(2, 63))


def test_models_of_another_kind():
    bart = AutoConfig.for_model(
        "bart", d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=96, pad_token_id=0
    )
    for model in (AutoModelForSeq2SeqLM.from_config(bart), AutoModel.from_config(bart)):
        with pytest.raises(ValueError, match=f"an encoder .* got {type(model).__name__}"):
            compressed(model)
    vit = AutoConfig.for_model(
        "vit", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(ValueError, match=r"ViTModel reads pixel_values; fastlr\.nn\.compress"):
        compressed(AutoModel.from_config(vit))
    with pytest.raises(ValueError, match=r"sweep measures perplexity: model .* got BertModel"):
        sweep(model_of(), text(64), targets="*", calibration=text(2, 16), progress=False)
    with pytest.raises(ValueError, match="gradients must be False: BertModel has no head"):
        calibrate(model_of(), text(2, 8), targets="*", gradients=True, progress=False)
    with pytest.raises(ValueError, match="calibration must be given: BertModel has no head"):
        calibrate(model_of(), targets="*", progress=False)


def test_load_wants_a_class_of_transformers(tmp_path):
    compressed(model_of()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["architectures"] == ["BertModel"]
    for names in (["Abacus"], ["AutoTokenizer"], [], None, ["BertModel", "BertForMaskedLM"]):
        path.write_text(json.dumps({**config, "architectures": names}))
        with pytest.raises(ValueError, match="must name one model class of transformers, got"):
            load(tmp_path)
    for broken in (b"{", b"[]", bytes(range(128, 256))):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a model's config"):
            load(tmp_path)
