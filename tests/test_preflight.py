import pytest
import tiny
import torch

from dreamer.errors import UserMistake
from dreamer.preflight import Needs, activation_bytes, check, kept, needs, size


@pytest.fixture(scope="module")
def parts():
    config, agent, vector, replay, _ = tiny.tiny_run(capacity=100)
    return config, agent, replay


@pytest.mark.parametrize(("batch", "length"), [(2, 4), (1, 2), (3, 8), (2, 32)])
def test_activations_are_those_of_a_whole_batch(batch, length):
    config, agent, *_, replay, _ = tiny.tiny_run(f"replay.length={length}", f"replay.batch={batch}", capacity=100)
    before = agent.generator.get_state()
    told = sum(activation_bytes(agent, replay))
    assert torch.equal(before, agent.generator.get_state()), "nothing is drawn for it"
    assert told == pytest.approx(kept(agent, replay.blank(batch)), rel=0.05)


def test_what_is_kept():
    """A product keeps both of its factors, once."""

    class Agent:
        generator, device = torch.Generator(), torch.device("cpu")

        def loss(self, batch):
            weight = torch.ones(10, 10, requires_grad=True)
            return (batch @ weight) @ weight

    # 100 weights, 50 numbers that went in and 50 of the first product, all float32.
    assert kept(Agent(), torch.ones(5, 10)) == 4 * (100 + 50 + 50)


def test_nothing_is_kept_of_it_afterwards(parts, monkeypatch):
    """A gradient's node that lives on is used again, on the stream that it was made on: a GPU's capture breaks."""
    _, agent, replay = parts
    real = agent.loss

    def nodes():
        return [torch.autograd.graph.get_gradient_edge(p).node for p in agent.parameters]

    def loss(batch):
        result = real(batch)
        for node in nodes():
            node.metadata["seen"] = True
        return result

    monkeypatch.setattr(agent, "loss", loss)
    kept(agent, replay.blank(2))
    assert not any("seen" in node.metadata for node in nodes())


def test_the_model_counts_four_times_and_the_slow_critic_and_what_acts_once(parts):
    _, agent, replay = parts
    need = needs(agent, replay)
    slow = sum(p.numel() for p in agent.actor_critic.slow_critic.parameters())
    modules = agent.world_model.encoder, agent.world_model.rssm, agent.actor_critic.actor
    acting = sum(p.numel() for module in modules for p in module.parameters())
    assert need.model == 4 * (4 * agent.parameter_count + slow + acting)
    assert need.replay == replay.bytes and need.on(agent, replay) == sum(need)


def test_what_does_not_fit_is_refused_with_what_would(parts):
    _, agent, replay = parts
    need = Needs(replay=10**9, model=2 * 10**9, update=0, batch=4 * 10**9)
    check(need, 7 * 10**9, agent, replay)
    with pytest.raises(UserMistake) as error:
        check(need, 6 * 10**9, agent, replay)  # 3 are left for batches of 2, which take 4: one
    assert str(error.value) == (
        "a 1m model with batches of 2 x 4 steps needs 7 GB of memory (replay 1 GB when full, model 2 GB, an update "
        "4 GB), but cpu has 6 GB; replay.batch=1 would fit"
    )
    with pytest.raises(UserMistake, match="give a smaller --size or replay.capacity"):
        check(need, 4 * 10**9, agent, replay)
    fixed = need._replace(update=2 * 10**9, batch=2 * 10**9)  # what no smaller batch saves
    with pytest.raises(UserMistake, match="replay.batch=1 would fit"):
        check(fixed, 6 * 10**9, agent, replay)
    with pytest.raises(UserMistake, match="give a smaller --size or replay.capacity"):
        check(fixed, 59 * 10**8, agent, replay)


@pytest.mark.parametrize(("count", "text"), [(999, "0.999 kB"), (1_070, "1.07 kB"), (84.4e6, "84.4 MB"), (2e9, "2 GB")])
def test_sizes(count, text):
    assert size(int(count)) == text
