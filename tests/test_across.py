"""`tests/across.py`: what it takes from one implementation to the other comes back as it was.

That it arrives there under the right names is seen in the other implementation alone, see `runs/results/whole_loop`.
"""

import numpy as np
import pytest
import torch
from across import MOMENTS, here, layout, pairs, there
from click.testing import CliRunner
from golden import as_ours, as_there
from trained import load

import dreamer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"ratio": 1, "run.compile": False, "replay.batch": 2, "replay.length": 8}
    path = tmp_path_factory.mktemp("run") / "run"
    return dreamer.train("dmc/walker_walk", path, frames=1200, size="1m", device="cpu", settings=settings)


def call(command, *paths):
    result = CliRunner().invoke(command, [str(path) for path in paths], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_what_is_learned_comes_back_as_it_was(run, tmp_path):
    call(there, run, tmp_path / "state.npz")
    call(here, tmp_path / "state.npz", run, tmp_path / "new")
    (before, rows), (after, same) = load(run), load(tmp_path / "new")
    assert before.optimizer.updates == after.optimizer.updates > 0
    for (name, one), (_, other) in zip(pairs(before), pairs(after), strict=True):
        assert torch.equal(one, other), name
    assert rows.count == same.count
    kept, again = (each.export_rows(0, rows.count) | each.export_latents(0, rows.count) for each in (rows, same))
    for key, value in kept.items():
        assert torch.equal(value, again[key]), key


def test_it_goes_on_from_there(run, tmp_path):
    call(there, run, tmp_path / "state.npz")
    call(here, tmp_path / "state.npz", run, tmp_path / "new")
    dreamer.train(run=tmp_path / "new", frames=1600)
    assert load(tmp_path / "new")[0].optimizer.updates > load(run)[0].optimizer.updates


def test_every_parameter_has_two_moments(run):
    names = [name for name, _ in pairs(load(run)[0])]
    assert len(names) == len(set(names))
    learned = {name for name in names if name.startswith(("enc/", "dyn/", "dec/", "rew/", "con/", "pol/", "val/"))}
    for where in MOMENTS.values():
        assert {layout(name) for name in names if name.startswith(f"{where}/")} == learned


def test_a_matrix_is_turned():
    assert as_there("val/mlp/linear0/kernel", torch.tensor([[1, 2, 3]]), 0).tolist() == [[1], [2], [3]]


def test_the_decoder_reads_latents_first_there():
    there = as_there("dec/mlp/linear0/kernel", torch.tensor([[1, 2, 3, 8, 9]]), 2)
    assert there.squeeze().tolist() == [8, 9, 1, 2, 3]


def test_bins_ascend_there():
    bias = as_there("rew/head/logits/bias", torch.arange(255), 0)
    assert bias[[0, 126, 127, 128, 254]].tolist() == [0, 126, 254, 253, 127]  # zero lies last here, see twohot_places


def test_images_kernels_come_back():
    kernel = torch.from_numpy(np.arange(120.0).reshape(5, 4, 3, 2))
    assert torch.equal(as_ours("enc/cnn0/kernel", as_there("enc/cnn0/kernel", kernel, 0), 0), kernel)
