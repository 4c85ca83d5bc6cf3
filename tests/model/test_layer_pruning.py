import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.model.load import new_model
from tests.tiny_models import tiny_model, tiny_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
TEACHERS = {
    "hf_llm": SIZES,
    "llama": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 6, "n_head": 4},
    "bert": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 6, "n_heads": 4},
    "modernbert": SIZES,
}
KEPT = [0, 2, 5]


def teacher(folder, model_type, **changes):
    torch.manual_seed(1)
    section = {"model_type": model_type, **TEACHERS.get(model_type, SIZES), **changes}
    model = new_model(section, tiny_tokenizer(), 64).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model_type", TEACHERS)
def test_a_student_is_its_teacher_without_the_layers_left_out(tmp_path, model_type):
    whole = teacher(tmp_path, model_type)
    student = new_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=KEPT).eval()
    assert type(student) is type(whole)
    assert student.config.num_hidden_layers == 3 and student.config.max_position_embeddings == 64
    lists = [module for module in whole.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 6]
    for layers in lists:  # the same by surgery on the teacher
        kept = [layers[number] for number in KEPT]
        del layers[3:]
        for number, layer in enumerate(kept):
            layers[number] = layer
    whole.config.num_hidden_layers, whole.config.use_cache = 3, False
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = student.config.layer_types
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected, found = (model(input_ids=tokens, labels=tokens) for model in (whole, student))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    found = student(input_ids=tokens, labels=tokens).loss
    found.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_kinds_of_layers_stay_with_their_layers(tmp_path):
    kinds = ["full_attention", "sliding_attention"] * 3
    teacher(tmp_path, "hf_llm", layer_types=kinds, sliding_window=16)
    student = new_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=KEPT)
    assert student.config.layer_types == [kinds[number] for number in KEPT]


def test_the_section_says_what_is_not_to_be_as_in_the_teacher(tmp_path):
    teacher(tmp_path, "bert")
    section = {"model_type": "bert", "hidden_dropout_prob": 0.3, "num_hidden_layers": 3}
    student = new_model(section, tiny_tokenizer(), start_from=tmp_path, keep_layers=KEPT)
    assert student.config.hidden_dropout_prob == 0.3 and student.config.intermediate_size == 48


@pytest.mark.parametrize(
    ("section", "layers", "words"),
    [
        ({}, [0, 6], "keep_layers: .*from 0 to 5"),
        ({}, [-1, 2], "from 0 to 5"),
        ({}, [2, 0], "in their order"),
        ({}, [1, 1], "in their order"),
        ({}, [], "list layers"),
        ({"num_hidden_layers": 4}, [0, 1], "model.num_hidden_layers: 4 does not fit.*makes it 2"),
        ({"model_type": "llama"}, [0, 1], "model.model_type: 'llama' does not fit.*makes it 'bert'"),
        ({"hidden_size": 64}, [0, 1], "keep_layers: the layers kept do not fit the student.*64"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused_by_key(tmp_path, section, layers, words):
    teacher(tmp_path, "bert")
    with pytest.raises(UserError, match=words):
        new_model(section, tiny_tokenizer(), start_from=tmp_path, keep_layers=layers)


def test_a_first_layer_of_another_kind_has_to_stay(tmp_path):
    teacher(tmp_path, "modernbert")
    with pytest.raises(UserError, match="first layer of some models is of another kind"):
        new_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=[1, 2])


@pytest.mark.parametrize(
    "section",
    [
        {"model_type": "albert", "embedding_size": 16, **SIZES},
        {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4},
    ],
)
def test_a_teacher_without_a_single_row_of_layers_is_refused(tmp_path, section):
    new_model(section, tiny_tokenizer(), 64).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{section['model_type']} has no single row of layers"):
        new_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=[0, 1])


def test_a_teacher_with_shared_layers_is_refused(tmp_path):
    tiny_model(num_hidden_layers=4, num_hidden_groups=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="hf_llm has no single row of layers"):
        new_model({}, tiny_tokenizer(), start_from=tmp_path, keep_layers=[0, 1])
