"""How fast a critic learns what a trained policy is worth, by its width, learning rate and slow critic.

    PYTHONPATH=. python tests/critic_pace.py runs/FOLDER

World model and policy of a finished run stay as they are. Critics that begin anew learn side by side, all from the same
trajectories, replayed and imagined, by the losses and the optimiser of a training.
"""

from dataclasses import replace
from pathlib import Path

import click
import torch
import trained

from dreamer.actor_critic import ActorCritic
from dreamer.optimizer import LaProp

# Width, learning rate times, weight of the slow critic times.
KINDS = {
    "64 units": (64, 1, 1),
    "256 units": (256, 1, 1),
    "64 units, learning rate x 4": (64, 4, 1),
    "64 units, no slow critic": (64, 1, 0),
}
EVERY = 250  # updates


class Learner:
    def __init__(self, agent, units, rate, slow):
        torch.manual_seed(0)
        config = agent.config
        behavior = replace(config.behavior, slow_regularizer=slow * config.behavior.slow_regularizer)
        self.critic = ActorCritic(
            behavior, agent.action_spec, agent.world_model.feature_width, units, agent.actor_critic.discount
        )
        self.critic.actor.requires_grad_(False)
        self.imagined = torch.compile(self.critic.imagined_losses, dynamic=False)
        self.replayed = torch.compile(self.critic.replay_losses, dynamic=False)
        settings = replace(config.optimizer, learning_rate=rate * config.optimizer.learning_rate)
        self.optimizer = LaProp(self.critic.critic.parameters(), settings)
        self.weights = config.losses
        self.values, self.returns = [], []

    def update(self, trajectory, reward, continuation, feature, batch):
        losses, returns, _, metrics = self.imagined(trajectory.feature, trajectory.action, reward, continuation)
        bootstrap = returns[0].unflatten(0, batch.reward.shape)
        replayed = self.replayed(feature, batch.reward, batch.is_last, batch.is_terminal, bootstrap)
        loss = self.weights.critic * losses["critic"].mean()
        loss = loss + self.weights.replay_critic * replayed["replay_critic"].mean()
        loss.backward()
        sound = self.optimizer.is_sound(loss)
        self.optimizer.step(sound)
        self.optimizer.zero_grad()
        self.critic.update_slow_critic(sound)
        self.values.append(float(metrics["value"]))
        self.returns.append(float(metrics["return"]))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--updates", default=5000, show_default=True)
def main(run, updates):
    agent, replay = trained.load(run)
    config = agent.config
    agent.compile()
    learners = {name: Learner(agent, *kind) for name, kind in KINDS.items()}
    print("updates," + ",".join(f"{name}: value,{name}: return" for name in learners))
    for number in range(1, updates + 1):
        batch, _ = replay.sample(config.replay.batch)
        size = config.replay.batch * config.replay.length
        with torch.no_grad():
            state, _ = agent.world_model.observe(batch, agent._uniform(*batch.reward.shape, config.model.stoch))
            feature = agent.world_model.rssm.feature(state)
            trajectory = agent.imagination.rollout(state.flatten(), agent._rollout_noise(size))
            reward, continuation = agent.world_model.outcome(trajectory.feature)
        for learner in learners.values():
            learner.update(trajectory, reward, continuation, feature, batch)
        if number % EVERY == 0:
            means = [
                f"{sum(those[-EVERY:]) / EVERY:.2f}"
                for learner in learners.values()
                for those in (learner.values, learner.returns)
            ]
            print(f"{number}," + ",".join(means), flush=True)


if __name__ == "__main__":
    main()
