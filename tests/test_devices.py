"""The choice of a device, and messages about devices that cannot be used. Only the driver is patched: no GPU needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mt.cli import app
from mt.config.settings import ModelConfig, TrainConfig
from mt.errors import ConfigError
from mt.system import console
from mt.system.device import choose_device
from mt.system.distributed import Ranks
from mt.training.engine import choose_execution


class Machine:
    """A fake machine with GPUs: the functions by which torch asks the driver are patched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.set_devices: list[int] = []
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr("torch._C._cuda_setDevice", self.set_devices.append, raising=False)
        monkeypatch.setattr("torch.cuda.init", lambda: None)
        monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
        monkeypatch.setattr("mt.training.engine.compile_blocker", lambda: None)
        monkeypatch.setattr("torch.version.hip", None)
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        self.has(n_devices=0)
        console.note.cache_clear()

    def has(self, *, n_devices: int, capability: tuple[int, int] = (9, 0), code: str = "sm_75 sm_80 sm_90") -> None:
        self._patch.setattr("torch.cuda.is_available", lambda: n_devices > 0)
        self._patch.setattr("torch.cuda.device_count", lambda: n_devices)
        self._patch.setattr("torch.cuda.get_device_capability", lambda device: capability)
        self._patch.setattr("torch.cuda.get_device_name", lambda device: "a card")
        self._patch.setattr("torch.cuda.get_arch_list", code.split)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_device(name)
    return str(caught.value)


# --- The index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "local_rank", "index"), [("auto", None, 0), ("cuda", None, 0), ("cuda:1", None, 1), ("auto", 1, 1)]
)
def test_a_chosen_device_has_an_index_so_that_torch_accepts_it(
    machine: Machine, name: str, local_rank: int | None, index: int
) -> None:
    machine.has(n_devices=2)
    device = choose_device(name, local_rank)
    torch.cuda.set_device(device)  # refuses a device without an index
    assert machine.set_devices == [index]
    assert device == torch.device("cuda", index)


def test_each_rank_gets_the_device_of_its_local_rank(machine: Machine) -> None:
    machine.has(n_devices=2)
    train = TrainConfig()
    devices = [choose_execution(train, ModelConfig(), Ranks(rank=k, n=4, local_rank=k % 2)).device for k in range(4)]
    assert [str(device) for device in devices] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    with pytest.raises(ConfigError) as caught:
        choose_execution(replace(train, device="cuda:1"), ModelConfig(), Ranks(rank=1, n=4, local_rank=1))
    assert str(caught.value) == "train.device is cuda:1, but each of the 4 ranks needs its own device. Use auto."


# --- Devices that cannot be used --------------------------------------------------------------------------------------


def test_a_device_that_does_not_exist_is_refused(machine: Machine) -> None:
    machine.has(n_devices=2)
    assert refusal("cuda:9") == "device: cuda:9 was requested, but the last CUDA device is cuda:1"
    for name in ("gpu", "cuda:", "cuda:x", "mps", ""):
        assert refusal(name) == f"device: expected auto, cpu, cuda or cuda:N, got {name!r}"


def test_a_machine_without_a_gpu_uses_the_cpu_without_a_message(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("mt.system.device.NVIDIA_DRIVER", Path("not/there"))
    assert choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ""
    expected = f"device: cuda was requested, but torch {torch.__version__} finds no CUDA device. Use cpu."
    assert refusal("cuda") == expected


def without_cuda(machine: Machine, patch: pytest.MonkeyPatch) -> str:
    patch.setattr("torch.version.cuda", None)
    return f"torch {torch.__version__} is built without CUDA (install its CUDA build to use the NVIDIA GPU)"


def with_an_old_driver(machine: Machine, patch: pytest.MonkeyPatch) -> str:
    patch.setattr("torch.version.cuda", "13.0")
    return (
        f"torch {torch.__version__} cannot use the NVIDIA GPU (it needs a driver for CUDA 13.0; nvidia-smi shows which "
        "one is installed)"
    )


def no_code(capability: str) -> str:
    return (
        f"torch {torch.__version__} has no code for a card (compute capability {capability}; it has sm_75, sm_80, "
        "sm_90; another build of torch may have it)"
    )


def with_an_old_card(machine: Machine, patch: pytest.MonkeyPatch) -> str:
    machine.has(n_devices=1, capability=(7, 0))
    return no_code("7.0")


def with_a_new_card(machine: Machine, patch: pytest.MonkeyPatch) -> str:
    machine.has(n_devices=1, capability=(10, 0))
    return no_code("10.0")


def with_an_apple_gpu(machine: Machine, patch: pytest.MonkeyPatch) -> str:
    patch.setattr("torch.backends.mps.is_available", lambda: True)
    return "mt does not support Apple GPUs (MPS)"


@pytest.mark.parametrize(
    "describe",
    [without_cuda, with_an_old_driver, with_an_old_card, with_a_new_card, with_an_apple_gpu],
    ids=lambda f: f.__name__,
)
def test_the_reason_why_a_gpu_is_not_used_is_logged_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], describe: Any
) -> None:
    reason = describe(machine, monkeypatch)
    assert [choose_device("auto"), choose_device("auto")] == [torch.device("cpu")] * 2
    assert capsys.readouterr().err == f"note: running on the CPU: {reason}\n"
    assert refusal("cuda") == f"device: cuda was requested, but {reason}. Use cpu."


@pytest.mark.parametrize(("visible", "is_told"), [("", False), ("-1", False), ("0", True)])
def test_hidden_gpus_are_not_mentioned(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str,
    is_told: bool,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_device("auto") == torch.device("cpu")
    assert ("note: running on the CPU" in capsys.readouterr().err) == is_told


def test_a_rank_does_not_use_the_cpu_while_others_may_have_a_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = with_an_old_card(machine, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        choose_device("auto", local_rank=0)
    assert str(caught.value) == f"device: auto was requested, but {reason}. Use cpu."
    machine.has(n_devices=0)
    assert choose_device("auto", local_rank=0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "code"), [((8, 6), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "compute_90"), ((12, 1), "sm_80 sm_120")]
)
def test_binary_code_runs_on_later_cards_of_its_generation_and_ptx_on_all_later_cards(
    machine: Machine, capability: tuple[int, int], code: str
) -> None:
    machine.has(n_devices=1, capability=capability, code=code)
    assert choose_device("cuda") == torch.device("cuda", 0)


def test_rocm_is_used_without_untested_features_and_with_a_note(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has(n_devices=1, code="gfx90a gfx942")
    monkeypatch.setattr("torch.version.hip", "6.4")
    execution = choose_execution(TrainConfig(), ModelConfig())
    assert (execution.device, execution.attention) == (torch.device("cuda", 0), "tiles")
    assert execution.note == "bf16, not compiled (ROCm is not tested)"
    note = "note: mt is not tested with ROCm; it uses plain attention kernels and compiles nothing\n"
    assert capsys.readouterr().err == note


# --- Attention and compilation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "train", "model", "attention", "note"),
    [
        ((7, 5), {}, {}, "packed", "fp16, compiled"),
        ((9, 0), {}, {}, "packed", "bf16, compiled"),
        ((9, 0), {"precision": "fp32"}, {}, "packed", "fp32, compiled"),
        ((9, 0), {}, {"attention_dropout": 0.1, "positions": "alibi"}, "packed", "bf16, compiled"),
        ((9, 0), {"compile": False}, {}, "packed", "bf16, not compiled (train.compile is false)"),
        ((9, 0), {"attention": "flash"}, {}, "flash", "bf16, flash attention, compiled"),
        ((9, 0), {}, {"d_model": 320}, "flash", "bf16, flash attention, compiled"),
    ],
)
def test_the_fastest_supported_attention_is_chosen(
    machine: Machine,
    capability: tuple[int, int],
    train: dict[str, Any],
    model: dict[str, Any],
    attention: str,
    note: str,
) -> None:
    machine.has(n_devices=1, capability=capability)
    execution = choose_execution(TrainConfig(**train), ModelConfig(**model))
    assert (execution.attention, execution.note) == (attention, note)


FLASH = {"attention": "flash"}
FEATURES = "needs model.d_model / model.n_heads of 16, 32, 64"


@pytest.mark.parametrize(
    ("capability", "train", "model", "obstacle", "need"),
    [
        ((7, 5), FLASH, {}, "train.attention is flash", "compute capability 8.0; this GPU has 7.5"),
        ((7, 0), {}, {}, "our own attention needs compute capability 7.5", "compute capability 8.0; this GPU has 7.0"),
        ((9, 0), {"precision": "fp32"}, {"n_heads": 4}, f"our own attention in fp32 {FEATURES}", "bf16 or fp16"),
        ((9, 0), FLASH, {"attention_dropout": 0.1}, "train.attention is flash", "model.attention_dropout 0"),
        ((9, 0), FLASH, {"positions": "alibi"}, "train.attention is flash", "model.positions other than alibi"),
        (
            (9, 0),
            {},
            {"n_heads": 1},
            f"our own attention in bf16 {FEATURES}, 128",
            "model.d_model / model.n_heads up to 256",
        ),
    ],
)
def test_the_note_says_why_each_faster_attention_cannot_be_used(
    machine: Machine,
    capability: tuple[int, int],
    train: dict[str, Any],
    model: dict[str, Any],
    obstacle: str,
    need: str,
) -> None:
    machine.has(n_devices=1, capability=capability, code="sm_70 sm_75 sm_80 sm_90")
    execution = choose_execution(TrainConfig(**train), ModelConfig(**model))
    assert execution.attention == "tiles"
    assert execution.note.endswith(f", not compiled ({obstacle}, and flash attention needs {need})")


def test_bf16_is_refused_on_gpus_that_emulate_it(machine: Machine) -> None:
    machine.has(n_devices=1, capability=(7, 5))
    with pytest.raises(ConfigError) as caught:
        choose_execution(TrainConfig(precision="bf16"), ModelConfig())
    assert str(caught.value) == ("train.precision: bf16 needs a GPU of compute capability 8.0. Use fp16, fp32 or auto.")


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_running_out_of_memory_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench_training(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has 1.75 GiB free.")

    monkeypatch.setattr("mt.tools.bench.bench_training", bench_training)
    result = CliRunner().invoke(app, ["bench", "--config", "demo"])
    assert result.exit_code == 2
    assert result.stderr == "error: CUDA out of memory. Use smaller batches, or the CPU.\n"
