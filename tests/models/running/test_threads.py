"""A small model runs on one thread, wherever its products are, and torch has as many as before afterwards."""

import copy
import threading

import pytest
import torch

from interp import patching
from interp.models.running import threads
from interp.models.running.threads import few_threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def at_the_head(toy):
    """The number of threads each time the unembedding runs."""
    numbers = []
    hook = toy.model.lm_head.register_forward_hook(lambda *_: numbers.append(torch.get_num_threads()))
    yield numbers
    hook.remove()


def test_every_kind_of_run_has_one_thread_at_its_products(toy, at_the_head):
    prompt = toy.prepare(["a red 3 at top . what colour is the 3 ?"])
    other = toy.prepare(["a blue 3 at top . what colour is the 3 ?"])
    metric = patching.logit_difference("red", "blue")
    runs = [
        lambda: toy.logits(prompt),
        lambda: toy.generate(prompt, 2),
        lambda: patching.patch_sweep(toy, prompt, other, layers=[2], positions=[-1], metric=metric),
        lambda: patching.attribution_patch(toy, prompt, other, layers=[2], positions=[-1], metric=metric),
        lambda: toy.check(),
    ]
    for run in runs:
        at_the_head.clear()
        run()
        assert set(at_the_head) == {1}
        assert torch.get_num_threads() == 2


def test_a_run_that_fails_gives_the_threads_back(toy):
    with pytest.raises(RuntimeError, match="on purpose"), few_threads(toy):
        raise RuntimeError("on purpose")
    assert torch.get_num_threads() == 2


def test_it_may_be_nested(toy):
    with few_threads(toy):
        with few_threads(toy):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


class Model:
    def __init__(self, small, device):
        self.is_small, self.device = small, torch.device(device)


@pytest.mark.parametrize(("small", "device"), [(False, "cpu"), (True, "cuda")])
def test_large_models_and_gpus_are_left_alone(small, device):
    with few_threads(Model(small, device)):
        assert torch.get_num_threads() == 2


def test_small_is_a_number_of_weights(toy, monkeypatch):
    assert toy.is_small
    weights = sum(each.numel() for each in toy.model.parameters())
    monkeypatch.setattr("interp.models.running.core.SMALL", weights)
    monkeypatch.setattr(toy, "_small", None)
    assert not type(toy).is_small.fget(copy.copy(toy))


def test_one_thread_of_the_users_own_is_respected(toy):
    torch.set_num_threads(1)
    with few_threads(toy):
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    assert threads._under_way["runs"] == 0


def test_many_threads_of_python_run_at_once(toy):
    """Whoever ends last, everyone has two threads again, and so have those that start later."""
    numbers, start = [], threading.Barrier(4)

    def run(rounds):
        torch.set_num_threads(2)
        start.wait()
        for _ in range(rounds):
            with few_threads(toy):
                numbers.append(torch.get_num_threads())
        numbers.append(torch.get_num_threads() - 1)

    workers = [threading.Thread(target=run, args=(10 * (number + 1),)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(numbers) == {1}
    later = []
    fresh = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert later == [2]
    assert torch.get_num_threads() == 2
