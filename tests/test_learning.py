"""The gate: a whole agent learns what none does in which something is broken."""

import recall
import torch


def test_it_learns_to_remember():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for products as small as these
    try:
        agent, vector = recall.learn(seed=0, rows=1500)
        assert recall.score(agent, vector) > 85
    finally:
        torch.set_num_threads(threads)
