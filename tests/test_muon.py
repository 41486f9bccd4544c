"""Muon: its updates, its state, and what it shares with Adam."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt.config.settings import TrainConfig
from mt.model import Transformer
from mt.model.layers import Linear
from mt.text.prepare import prepare_corpus
from mt.text.tokenizer import PAD_ID
from mt.training.engine import Footprint
from mt.training.loop import train
from mt.training.muon import ADAM_RMS, Muon, orthogonalised
from mt.training.optimizer import Optimizer, matrices_of
from tests.test_training import interrupt_at_step_6
from tests.toys import RICH, small_model, toy_config, weights_of

FINITE, NOT_FINITE, ONE = torch.tensor(False), torch.tensor(True), torch.tensor(1.0)


def parameters_with_gradients(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    torch.manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    renew_gradients(parameters)
    return parameters


def renew_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)


def whole(parameters: list[nn.Parameter]) -> list[tuple[Tensor, list[int]]]:
    return [(parameter, [len(parameter)]) for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_of_plain_matrices_equal_those_of_torch(weight_decay: float) -> None:
    # Wide, tall and square matrices; two of them have the same shape, one of these transposed.
    ours, theirs = (parameters_with_gradients((8, 24), (24, 8), (16, 16), (30, 6)) for _ in range(2))
    muon = Muon(whole(ours), 0.9, weight_decay, torch.bfloat16)
    reference = torch.optim.Muon(
        theirs, lr=0.05, momentum=0.9, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        for parameters in (ours, theirs):
            torch.manual_seed(seed)
            renew_gradients(parameters)
        muon.compute(ONE, FINITE)
        muon.apply(0.05)
        reference.step()
    for our, their in zip(ours, theirs, strict=True):
        # bf16 has 8 bits of mantissa, and products of a batch may add up in another order.
        torch.testing.assert_close(our, their, atol=0.05 * ADAM_RMS * math.sqrt(30) * 0.02, rtol=0)


def test_singular_values_end_near_one() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalised(torch.randn(3, 20, 60)))
    assert singular.min() > 0.65
    assert singular.max() < 1.25
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


def test_each_projection_of_a_layer_is_a_separate_matrix() -> None:
    fused, apart = parameters_with_gradients((30, 10)), parameters_with_gradients((10, 10), (20, 10))
    with torch.no_grad():
        for part, rows in zip(apart, torch.split(fused[0], [10, 20]), strict=True):
            part.copy_(rows)
    for part, gradient in zip(apart, torch.split(fused[0].grad, [10, 20]), strict=True):
        part.grad = gradient
    for matrices in ([(fused[0], [10, 20])], whole(apart)):
        muon = Muon(matrices, 0.95, 0.1, torch.float32)
        muon.compute(ONE, FINITE)
        muon.apply(0.1)
    torch.testing.assert_close(torch.cat(list(apart)), fused[0])


def test_computing_an_update_changes_nothing_and_neither_does_one_that_is_not_finite() -> None:
    parameters = parameters_with_gradients((8, 8), (4, 8))
    muon = Muon(whole(parameters), 0.95, 0.1, torch.float32)
    muon.compute(ONE, FINITE)
    muon.apply(0.1)
    before = [tensor.detach().clone() for tensor in (*parameters, *muon.state_dict())]
    muon.compute(ONE, FINITE)
    assert all(map(torch.equal, before, (*parameters, *muon.state_dict())))
    assert parameters[0].grad is not None
    parameters[0].grad[0, 0] = math.nan
    parameters[1].grad = torch.full_like(parameters[1], math.inf)
    muon.compute(ONE, NOT_FINITE)
    muon.apply(0.1)
    assert all(map(torch.equal, before, (*parameters, *muon.state_dict())))


def optimizer_step(model: nn.Module, optimizer: Optimizer, scale: float = 1.0) -> None:
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * scale
    optimizer.step(1e-3)


@pytest.mark.parametrize("variant", [{}, RICH], ids=["default", "rich"])
def test_the_matrices_of_layers_get_muon_and_all_else_gets_adam(variant: dict[str, Any]) -> None:
    model, of_adam = small_model(**variant), small_model(**variant)
    optimizer_step(model, Optimizer(model, TrainConfig(optimizer="muon"), torch.float32))
    optimizer_step(of_adam, Optimizer(of_adam, TrainConfig(), torch.float32))
    in_layers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    assert len(in_layers) == len(matrices_of(model)) > 10
    for (name, parameter), other in zip(model.named_parameters(), of_adam.parameters(), strict=True):
        assert torch.equal(parameter, other) == (name not in in_layers), name


def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_state_of_the_optimizer() -> None:
    model = small_model()
    optimizer = Optimizer(model, TrainConfig(optimizer="muon", clip_norm=1.0), torch.float32)
    optimizer_step(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    averages = [average.clone() for average in optimizer.state_dict()["muon"]]
    optimizer_step(model, optimizer, math.inf)
    assert optimizer.was_skipped.item() == 1.0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(map(torch.equal, averages, optimizer.state_dict()["muon"]))


def test_a_run_with_muon_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, max_steps=9, optimizer="muon", weight_decay=0.01)
    corpus = prepare_corpus(config)
    train(config, corpus, tmp_path / "whole")
    interrupt_at_step_6(config, corpus, tmp_path / "resumed", monkeypatch)
    train(config, corpus, tmp_path / "resumed")
    whole_run, resumed = (weights_of(tmp_path / run, 9) for run in ("whole", "resumed"))
    assert whole_run.keys() == resumed.keys()
    assert all(torch.equal(whole_run[name], resumed[name]) for name in whole_run)


def test_the_memory_of_the_state_is_known_beforehand(tmp_path: Path) -> None:
    config = toy_config(tmp_path, optimizer="muon")
    model = Transformer(config.model, vocab_size=380, pad_id=PAD_ID)
    state = Optimizer(model, config.train, torch.float32).state_dict()
    moments = [entry[key] for entry in state["adam"]["state"].values() for key in ("exp_avg", "exp_avg_sq")]
    n_bytes = 4 * sum(map(torch.numel, (*state["muon"], *moments)))
    assert Footprint.of(config, 380).memory["the averages of Adam and Muon"] == n_bytes
