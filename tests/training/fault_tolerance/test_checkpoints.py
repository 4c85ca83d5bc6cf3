import json
import random
import shutil

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import read_manifest
from hf_llm.training.fault_tolerance.checkpoints import (
    all_checkpoints,
    check_fingerprint,
    complete_checkpoints,
    delete_old_checkpoints,
    latest_valid_checkpoint,
    recorded_bytes,
    verify_checkpoint,
    write_checkpoint_manifest,
)

FILES = {
    "model.safetensors": 5000,
    "optimizer.pt": 9000,
    "scheduler.pt": 100,
    "rng_state.pth": 200,
    "trainer_state.json": 300,
    "global_step4/rank_1.pt": 700,
}


def make(folder, step, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    for name, size in FILES.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(random.Random(f"{step}{name}").randbytes(size))
    if sealed:
        write_checkpoint_manifest(checkpoint, fingerprint={"data": "a", "rows": [1, 2]}, processes=1, engine="torch")
    return checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_sealed_checkpoint_is_whole_and_knows_its_size(tmp_path):
    checkpoint = make(tmp_path, 4)
    assert verify_checkpoint(checkpoint) is None
    assert recorded_bytes(checkpoint) == sum(FILES.values())
    assert read_manifest(checkpoint)["step"] == 4


def test_every_single_bit_flip_is_found_and_its_file_named(undisturbed, tmp_path):
    checkpoint = shutil.copytree(undisturbed.folder / "checkpoint-8", tmp_path / "checkpoint-8")
    assert verify_checkpoint(checkpoint) is None
    draw = random.Random(0)
    for path in [path for path in checkpoint.rglob("*") if path.is_file()] * 3:
        content = path.read_bytes()
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        kind, reason = verify_checkpoint(checkpoint)
        assert (kind, path.name in reason) == ("corrupt", True), (path, place, bit, reason)
        path.write_bytes(content)
    assert verify_checkpoint(checkpoint) is None


def test_truncated_missing_and_foreign_files_are_found_and_named(tmp_path):
    for name in FILES:
        checkpoint, other = make(tmp_path / "a", 4), make(tmp_path / "b", 8)
        (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-1])
        assert verify_checkpoint(checkpoint) == (
            "corrupt",
            f"{name} has {FILES[name] - 1:,} bytes and had {FILES[name]:,} when it was saved",
        )
        shutil.copy(other / name, checkpoint / name)
        assert verify_checkpoint(checkpoint) == (
            "corrupt",
            f"{name} differs from what was saved (its digest does not match)",
        )
        (checkpoint / name).unlink()
        assert verify_checkpoint(checkpoint) == ("corrupt", f"{name} is missing")


def test_the_newest_whole_one_is_chosen_and_newer_ones_quarantined_with_a_reason(tmp_path, capsys):
    for step in (4, 8, 12, 100):
        make(tmp_path, step, sealed=step != 100)
    (tmp_path / "checkpoint-12" / "optimizer.pt").unlink()
    assert latest_valid_checkpoint(tmp_path).name == "checkpoint-8"
    assert names(tmp_path) == ["checkpoint-100.incomplete", "checkpoint-12.corrupt", "checkpoint-4", "checkpoint-8"]
    printed = capsys.readouterr().out
    assert "checkpoint-12 is quarantined as checkpoint-12.corrupt: optimizer.pt is missing" in printed
    assert "checkpoint-100 is quarantined as checkpoint-100.incomplete: it was cut off while being written" in printed


def test_none_good_is_an_error_with_every_reason_that_moves_nothing_twice_over(tmp_path):
    for step in (4, 8):
        make(tmp_path, step, sealed=step != 8)
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)checkpoint-8: it was cut off.*checkpoint-4: optimizer.pt is missing"):
            latest_valid_checkpoint(tmp_path)
        assert names(tmp_path) == ["checkpoint-4", "checkpoint-8"]


def test_no_checkpoint_and_a_first_save_cut_off_both_mean_a_start(tmp_path, capsys):
    assert latest_valid_checkpoint(tmp_path) is None
    for _ in range(2):
        make(tmp_path, 4, sealed=False)
        assert latest_valid_checkpoint(tmp_path) is None
        assert names(tmp_path) == ["checkpoint-4.incomplete"]
        assert "cut off" in capsys.readouterr().out


def test_rotation_keeps_two_at_least_and_the_best_and_clears_what_was_cut_off(tmp_path):
    for step in (4, 8, 12, 16, 20):
        make(tmp_path, step, sealed=step != 12)
    make(tmp_path, 24, sealed=False)  # under way
    (tmp_path / "checkpoint-2.incomplete").mkdir()
    (tmp_path / "checkpoint-2.corrupt").mkdir()
    delete_old_checkpoints(tmp_path, keep=1, best=tmp_path / "checkpoint-4")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-16", "checkpoint-20"]
    assert names(tmp_path) == [
        "checkpoint-16",
        "checkpoint-2.corrupt",
        "checkpoint-20",
        "checkpoint-24",
        "checkpoint-4",
    ]


def test_rotation_never_counts_one_that_is_not_sealed(tmp_path):
    for step in (4, 8, 12):
        make(tmp_path, step, sealed=step != 12)
    delete_old_checkpoints(tmp_path, keep=2)
    assert len(all_checkpoints(tmp_path)) == 3


def test_a_changed_fingerprint_is_refused_with_old_and_new_values(tmp_path):
    checkpoint = make(tmp_path, 4)
    check_fingerprint(checkpoint, {"data": "a", "rows": (1, 2)})
    with pytest.raises(
        UserError, match=r"(?s)data: was 'a', is 'b'.*rows: was \[1, 2\], is 'not set'.*seed: was 'not set', is 3"
    ):
        check_fingerprint(checkpoint, {"data": "b", "seed": 3})


ALWAYS = ("trainer_state.json", "rng_state_0.pth", "rng_state_1.pth")
PARTS = {
    "torch": (*ALWAYS, "model.safetensors", "optimizer.pt", "scheduler.pt"),
    "FSDP": (*ALWAYS, "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp", "scheduler.pt"),
    "ZeRO-3": (*ALWAYS, "global_step4/zero_pp_rank_0_model_states.pt", "global_step4/zero_pp_rank_0_optim_states.pt"),
    "DCP": (*ALWAYS, "model.safetensors", "optimizer/__0_0.distcp", "scheduler.pt"),
}


@pytest.mark.parametrize("engine", PARTS)
def test_a_seal_wants_everything_that_a_resume_needs(tmp_path, engine):
    checkpoint = tmp_path / "checkpoint-4"
    for name in PARTS[engine]:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text("x")
    entries = {"processes": 2, "engine": engine}
    write_checkpoint_manifest(checkpoint, **entries)
    assert verify_checkpoint(checkpoint) is None

    for name in PARTS[engine]:
        for damage in (b"", None):  # an empty file, and none
            (checkpoint / name).unlink()
            if damage is not None:
                (checkpoint / name).write_bytes(damage)
            (checkpoint / "manifest.json").unlink(missing_ok=True)
            with pytest.raises(UserError, match="is not complete: it has no "):
                write_checkpoint_manifest(checkpoint, **entries)
            assert not (checkpoint / "manifest.json").exists()
            (checkpoint / name).write_text("x")


def test_a_seal_wants_every_shard_that_the_index_names(tmp_path):
    checkpoint = make(tmp_path, 4, sealed=False)
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError, match=r"it has no model-00002-of-00002\.safetensors"):
        write_checkpoint_manifest(checkpoint, processes=1, engine="torch")
    (checkpoint / shards["b"]).write_text("x")
    write_checkpoint_manifest(checkpoint, processes=1, engine="torch")
