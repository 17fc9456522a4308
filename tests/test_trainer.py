"""Training over epochs: windows, resuming, evaluation, logs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimized
import reference

both = pytest.mark.parametrize("implementation", [reference, optimized])
BATCHES = [(torch.randn(2, 6, generator=torch.Generator().manual_seed(i)), torch.tensor([i % 3, 1])) for i in range(5)]


def trainer(implementation: ModuleType, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    config = implementation.PeftConfig(target_modules=["*"], dim=2, alpha=4)
    implementation.apply_lora_to_linear_modules(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    return implementation.LoraTrainer(
        model,
        optimizer,
        nn.functional.cross_entropy,
        torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        **{"training_args": {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}, **options},
    )


def adapters(made: Any) -> list[Tensor]:
    return [p.detach().clone() for p in made.lora_training_module.parameters() if p.requires_grad]


@both
def test_epochs_step_once_a_window_and_divide_a_short_one_by_its_own_batches(implementation: ModuleType) -> None:
    made, by_hand = trainer(implementation), trainer(implementation)
    made.train(BATCHES, 2, fhe="torch")
    assert (made.epoch, made.step) == (2, 6)
    assert [line["epoch"] for line in made.history] == [1, 1, 1, 2, 2, 2]
    model: Any = by_hand.lora_training_module.inference_model
    optimizer, scheduler = by_hand.lora_training_module.optimizer, by_hand.lora_training_module.lr_scheduler
    for _ in range(2):
        for window in (BATCHES[:2], BATCHES[2:4], BATCHES[4:]):
            for x, labels in window:
                (nn.functional.cross_entropy(model(x), labels) / len(window)).backward()
            implementation.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            model.zero_grad()
    for got, want in zip(adapters(made), adapters(by_hand), strict=True):
        torch.testing.assert_close(got, want)
    assert made.lora_training_module.gradient_accumulation_steps == 2


@both
def test_a_resumed_run_is_the_same_run(implementation: ModuleType, tmp_path: Path) -> None:
    whole = trainer(implementation)
    whole.compile(BATCHES[0])
    whole.train(BATCHES, 11)
    first = trainer(implementation, checkpoint_dir=tmp_path)
    first.compile(BATCHES[0])
    first.hybrid_model.noise_position = (whole.hybrid_model.noise_position[0], 0)
    first.train(BATCHES, 10)
    second = trainer(implementation, checkpoint_dir=tmp_path)
    second.compile(BATCHES[0])
    assert second.load_checkpoint() == tmp_path / "epoch-10"  # and not epoch-9, the last by its name
    second.train(BATCHES, 11)
    assert [line["epoch"] for line in second.history] == [epoch for epoch in range(1, 12) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(adapters(second), adapters(whole), strict=True))
    (tmp_path / "epoch-12").mkdir()  # a checkpoint that was cut off
    assert second.load_checkpoint() == tmp_path / "epoch-11"
    assert second.load_checkpoint(tmp_path / "epoch-3") == tmp_path / "epoch-3"
    assert second.epoch == 3
    with pytest.raises(ValueError, match=r"num_epochs = 2: expected an int of at least 3, as are finished"):
        second.train(BATCHES, 2)


def test_evaluation_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    made = trainer(reference, eval_loader=BATCHES[:2], eval_steps=2, logging_steps=3, train_log_path=log)
    made.lora_training_module.inference_model[1].eval()
    made.train(BATCHES, 1, fhe="torch")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == made.history
    assert [sorted(line) for line in lines] == [
        ["epoch", "eval_loss", "step"],
        ["epoch", "grad_norm", "loss", "lr", "step"],
    ]
    model = made.lora_training_module.inference_model
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(model(x), labels)) for x, labels in BATCHES[:2]]
    assert made.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 2)
    assert model.training
    made.eval_metric_fn = lambda model, batches: {"batches": len(batches), "mode": model.training}
    assert made.evaluate() == {"eval_batches": 2.0, "eval_mode": 0.0}


def test_a_window_that_fails_can_be_repeated() -> None:
    made, whole = trainer(reference), trainer(reference)
    before = adapters(made)
    bad = (torch.full((2, 6), torch.nan), torch.tensor([0, 9]))
    with pytest.raises((ValueError, IndexError)):
        made.train([BATCHES[0], bad], 1, fhe="torch")
    assert all(torch.equal(a, b) for a, b in zip(adapters(made), before, strict=True))
    made.train(BATCHES, 1, fhe="torch")
    whole.train(BATCHES, 1, fhe="torch")
    assert all(torch.equal(a, b) for a, b in zip(adapters(made), adapters(whole), strict=True))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval_steps = 0: expected an int of at least 1"):
        trainer(reference, eval_steps=0)
    with pytest.raises(ValueError, match="n_layers_to_skip_for_backprop = -1: expected an int of at least 0"):
        trainer(reference, n_layers_to_skip_for_backprop=-1)
    made = trainer(reference, checkpoint_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint: expected epoch-N/trainer\.json"):
        made.load_checkpoint()
    with pytest.raises(ValueError, match="there is no eval_loader"):
        made.evaluate()
    with pytest.raises(ValueError, match="epoch 2 had no batch: expected a loader that can be iterated again"):
        made.train(iter(BATCHES), 2, fhe="torch")


@pytest.mark.parametrize(("skipped", "custom"), [(0, 3), (1, 2), (2, 1)])
def test_the_first_layers_are_skipped(skipped: int, custom: int) -> None:
    model = trainer(reference, n_layers_to_skip_for_backprop=skipped).lora_training_module
    assert sum(isinstance(module, reference.CustomLinear) for module in model.modules()) == custom


def test_cleared_weights_stay_away_when_a_remote_run_goes_on(tmp_path: Path) -> None:
    made = trainer(reference, server_remote_address="http://127.0.0.1:9", eval_loader=BATCHES[:1])
    made.compile(BATCHES[0])
    made.save_and_clear_private_info(tmp_path)
    for call in (lambda: made.train(BATCHES, 1, fhe="remote"), lambda: made.evaluate("remote")):
        with pytest.raises(reference.RemoteError, match=r"http://127\.0\.0\.1:9"):  # the first remote product
            call()
    with pytest.raises(
        RuntimeError, match=r"mode torch needs the weight of inference_model\.2.*, which was cleared here"
    ):
        made.train(BATCHES, 1, fhe="torch")


def test_evaluation_leaves_the_random_state_and_the_mode() -> None:
    made = trainer(reference, eval_loader=torch.utils.data.DataLoader(BATCHES, batch_size=None, shuffle=True))
    made.compile(BATCHES[0])
    made.train(BATCHES, 1, fhe="disable")
    before = torch.get_rng_state()
    made.evaluate(fhe="torch")
    assert torch.equal(torch.get_rng_state(), before)
    assert made.hybrid_model.mode is reference.HybridFHEMode.DISABLE
