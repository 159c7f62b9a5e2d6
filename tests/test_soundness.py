from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner

from dreamer.cli import main
from dreamer.loop import Counters, train
from dreamer.soundness import MOST_IN_A_ROW, NotFinite, Soundness, blame, reach

NAN = float("nan")


@pytest.fixture
def parts(tmp_path):
    config, agent, vector, replay, counters = tiny.tiny_run()
    train(config, agent, vector, replay, counters, [], tiny.Unsaved(), lambda: replay.count >= 30)
    return agent, replay, Soundness(tmp_path)


def told(soundness, batch, skipped, number, **losses):
    metrics = {f"loss/{name}": torch.tensor(value) for name, value in losses.items()}
    soundness.update(metrics | {"optimizer/skipped": torch.tensor(float(skipped))}, batch, Counters(1, updates=number))
    soundness.rows(None, Counters(1, updates=number))


def test_the_first_batch_is_kept_and_only_that(parts, tmp_path):
    _, replay, soundness = parts
    good, bad, worse = (replay.sample(2)[0] for _ in range(3))
    told(soundness, good, False, 1, reward=1.0)
    assert not list(tmp_path.iterdir())
    told(soundness, bad, True, 2, reward=NAN)
    told(soundness, worse, True, 3, reward=NAN)
    told(soundness, good, False, 4, reward=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["not_finite.pt"]
    kept = torch.load(tmp_path / "not_finite.pt", weights_only=True)
    assert kept["update"] == 2 and kept["metrics"]["loss/reward"].isnan()
    assert torch.equal(kept["batch"]["reward"], bad.reward)
    assert torch.equal(kept["batch"]["observation"]["where"], bad.observation["where"])
    assert torch.equal(kept["batch"]["start"]["deter"], bad.start.deter)


def test_a_sound_update_between_them_is_a_new_beginning(parts):
    _, replay, soundness = parts
    batch, _ = replay.sample(2)
    for number in range(3 * MOST_IN_A_ROW):
        told(soundness, batch, number % MOST_IN_A_ROW != 0, number)
    for number in range(MOST_IN_A_ROW - 1):
        told(soundness, batch, True, number) if number else told(soundness, batch, False, number)
    told(soundness, batch, True, 0)
    with pytest.raises(NotFinite) as error:
        told(soundness, batch, True, 0, reward=NAN, actor=1.0, total=NAN)
        told(soundness, batch, True, 1)
    assert f"the last {MOST_IN_A_ROW} updates were skipped, since the loss of reward was not finite" in str(error.value)
    assert str(error.value).endswith("not_finite.pt") and "\n" not in str(error.value)


def test_nothing_is_read_before_the_next_update(parts):
    _, replay, soundness = parts
    batch, _ = replay.sample(2)

    class Unreadable:
        def __bool__(self):
            raise AssertionError("a GPU may still compute it")

    soundness.update({"optimizer/skipped": Unreadable()}, batch, Counters(1))
    soundness.rows(None, Counters(1))
    soundness.update({"optimizer/skipped": Unreadable()}, batch, Counters(1))
    with pytest.raises(AssertionError, match="may still compute it"):
        soundness.rows(None, Counters(1))


def test_in_words(parts):
    _, replay, _ = parts
    one, inf = torch.tensor(1.0), torch.tensor(float("inf"))
    assert blame({"loss/total": inf, "loss/reward": one}) == "a gradient was not finite, though all losses were"
    both = {"loss/total": inf, "loss/reward": inf, "loss/critic": inf, "loss/actor": one}
    assert blame(both) == "the losses of reward, critic were not finite"
    batch, _ = replay.sample(2)
    batch = batch._replace(reward=torch.tensor([[-3e9, 1.0]]), observation={"where": torch.tensor([[0.0, 2.5]])})
    assert reach(batch) == "in the last batch there are observation where up to 2.5, rewards up to 3e+09"


def test_a_run_that_breaks_down(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.soundness.MOST_IN_A_ROW", 5)

    def broken(self, loss):
        return self.updates < 3

    monkeypatch.setattr("dreamer.optimizer.LaProp.is_sound", broken)
    pairs = [part for setting in tiny.WIDTHS for part in ("--set", setting)]
    folder = tmp_path / "run"
    arguments = ["train", "--env", "gym/CartPole-v1", "--size", "1m", "--frames", "200", "--run", str(folder), *pairs]
    result = CliRunner().invoke(main, [*arguments, "--set", "run.checkpoint_seconds=0.001"])
    assert result.exit_code == 2 and result.exception.code == 2
    assert result.stderr.splitlines()[-1].startswith("dreamer: the last 5 updates were skipped, since a gradient was")
    assert str(folder / "not_finite.pt") in result.stderr and Path(folder / "not_finite.pt").is_file()
    assert CliRunner().invoke(main, ["evaluate", str(folder), "--episodes", "1"]).exit_code == 0
