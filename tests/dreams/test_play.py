"""Playing the dream: the keys, the stage, and the page in a real browser."""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tiny
import torch
from chromium import Browser

import envs
from dreamer.dreams import play
from dreamer.dreams.controls import JOYSTICK, KEYS, PAIRS, Controls
from dreamer.dreams.dream import record
from dreamer.dreams.play import Server, Stage
from dreamer.errors import UserMistake
from dreamer.spaces import ActionPart, ActionSpec

# Keys ----------------------------------------------------------------------------------------------------

PONG = ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], "NOOP"),
        ([" "], "FIRE"),
        (["ArrowLeft"], "LEFT"),
        (["ArrowRight", " "], "RIGHTFIRE"),
        (["ArrowUp"], "NOOP"),  # which Pong does not have
        (["ArrowUp", "ArrowLeft"], "LEFT"),
    ],
)
def test_a_joystick(keys, expected):
    controls = Controls(ActionSpec((ActionPart("action", classes=(6,)),)), PONG)
    assert PONG[controls.action(keys).argmax()] == expected
    assert controls.legend == ["→ ← space"]


def test_names_that_are_no_joystick_s():
    controls = Controls(ActionSpec((ActionPart("action", classes=(5,)),)), ["PUMP UP", "HEAT", "COOL", "VENT", "STOP"])
    assert controls.action(["3"]).argmax() == 2 and controls.legend == ["action: 1 2 3 4 5"]


def test_a_choice_of_two_keeps_what_was_chosen():
    controls = Controls(ActionSpec((ActionPart("action", classes=(2,)),)))
    taken = [int(controls.action(keys).argmax()) for keys in ([], ["ArrowRight"], [], ["ArrowLeft"], [])]
    assert taken == [0, 1, 1, 0, 0] and controls.legend == ["action: ← →"]


def test_every_kind_of_action():
    spec = ActionSpec((ActionPart("move", size=3), ActionPart("set", classes=(3, 5))))
    controls = Controls(spec)
    assert controls.legend == ["move 0: ← →", "move 1: ArrowDown ↑".replace("ArrowDown", "↓"), "move 2: a d",
                               "set 0: s w", "set 1: 1 2 3 4 5"]  # fmt: skip
    assert controls.action([]).tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    assert controls.action(["ArrowRight", "ArrowDown", "a", "d", "w", "4"]).tolist() == [
        1, -1, 0, 0, 0, 1, 0, 0, 0, 1, 0
    ]  # fmt: skip


def test_a_long_row_of_choices_takes_what_keys_it_needs():
    controls = Controls(ActionSpec((ActionPart("action", classes=(14,)),)))
    assert controls.legend == ["action: 1 2 3 4 5 6 7 8 9 0 y u i o"]
    assert [int(controls.action([key]).argmax()) for key in "190yo"] == [0, 8, 9, 10, 13]
    assert controls.action(["x"]).argmax() == 0  # no key of its


def test_when_keys_run_out():
    controls = Controls(ActionSpec((ActionPart("move", size=21),)))
    assert controls.legend[6:9] == ["move 6: j l", "move 7: 1 2", "move 8: 3 4"]
    assert controls.legend[-2:] == ["move 16: e k", "no keys are left for move 17 and 3 others"]
    assert controls.action(["2", "e"]).tolist() == [0] * 7 + [1] + [0] * 8 + [-1] + [0] * 4
    many = Controls(ActionSpec((ActionPart("one", classes=(18,)), ActionPart("two", classes=(9, 9)))))
    assert many.legend[1:] == ["two 0: e k", "no keys are left for 7 choices of two 0, two 1"]
    assert many.action(["k"])[18:].argmax() == 1 and many.action(["k"])[27] == 1


def test_no_key_has_two_meanings():
    page = (pathlib.Path(play.__file__).parents[1] / "data/play.html").read_text()
    commands = re.search(r"const buttons = \{(.*)\};", page)[1]
    keys = [*(key for pair in PAIRS for key in pair), *KEYS, *JOYSTICK.values(), *re.findall(r"(\w):", commands)]
    assert len(re.findall(r"(\w):", commands)) == 6
    assert len(keys) == len(set(keys)) + 4  # the arrows are also the joystick's


# The stage -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent():
    _, agent, *_ = tiny.tiny_run()
    return agent


@pytest.fixture
def stage(agent):
    (factory,) = tiny.counting_vector(1)._factories
    return Stage(agent, factory(), seed=1)


def test_the_real_one_gets_the_same_actions(stage):
    assert stage.show()["step"] == 0 and "real" not in stage.show()
    for _ in range(2):
        stage.step(["ArrowUp", "3"])
    real = stage.show(real=True)["real"]
    # act, a choice of four, takes digits; move takes two pairs of arrows.
    assert real["seen"]["where"][2:] == [0, 2, 2, 0, 1] and not real["over"] and real["reward"] == 3
    stage.step()
    assert stage.show(real=True)["real"]["over"]  # its first episode has three steps
    stage.step()
    shown = stage.show(real=True)
    assert shown["step"] == 4 and shown["real"]["over"] and shown["real"]["seen"]["where"][3] == 3


def test_rewinding(stage):
    for _ in range(5):
        stage.step()
    before = stage.show(real=True)
    third = stage._states[3]
    stage.rewind(2)
    assert stage.steps == 3 and stage._states[-1] is third
    stage.step()
    stage.step()
    again = stage.show(real=True)["real"]
    assert again["over"] and again["seen"]["where"][3:] == before["real"]["seen"]["where"][3:]
    stage.rewind(1000)
    assert stage.steps == 0
    stage.rewind(-5)
    assert stage.steps == 0


def test_another_episode(stage):
    stage.controls._chosen["act", 0] = 1
    stage.step()
    stage.reset()
    assert not stage.controls._chosen
    assert stage.show(real=True)["real"]["seen"]["where"][2:4] == [1, 0] and stage.steps == 0


def test_an_episode_that_cannot_begin_leaves_the_old_one(stage, monkeypatch):
    for _ in range(2):
        stage.step()

    def fail(**_):
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(stage._environment, "reset", fail)
        with pytest.raises(RuntimeError):
            stage.reset()
    assert stage.steps == 2 and len(stage._states) == 3 and stage._seed == 1


def test_a_picture_that_cannot_be_drawn_is_left_out(agent, monkeypatch):
    (factory,) = tiny.counting_vector(1)._factories
    environment = factory()

    def fail():
        raise RuntimeError("no OpenGL")

    monkeypatch.setattr(type(environment), "render_mode", "rgb_array", raising=False)
    monkeypatch.setattr(environment, "render", fail)
    assert Stage(agent, environment, seed=1).show(real=True)["real"]["picture"] is None


def test_the_agent_plays_in_its_dream(agent, stage):
    stage.step(agent=True)
    assert stage._actions[0].shape == (agent.action_spec.width,) and stage._actions[0][:4].sum() == 1


def test_the_dream_begins_where_the_real_one_does(agent, stage):
    (episode, *_) = record(agent, tiny.counting_vector(1), 1)
    np.testing.assert_allclose(stage._states[0].deter[0], episode.state.deter[0], rtol=1e-5, atol=1e-6)


# The page ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(stage, title="a title"):
    server = Server(stage, title, 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.end()
        thread.join()


def post(address, path, body=b"{}", **headers):
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"} | headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_server_answers_this_machine_alone(stage):
    with serving(stage) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert post(server.address, "/step")["step"] == 1
        assert post(server.address, "/rewind", b'{"steps": 1}')["step"] == 0
        for path, body, headers, status in (
            ("/step", b"{}", {"Host": "example.org"}, 403),
            ("/step", b"{}", {"Content-Type": "text/plain"}, 403),
            ("/step", b"[1]", {}, 400),
            ("/step", b"{", {}, 400),
            ("/nothing", b"{}", {}, 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(server.address, path, body, **headers)
            assert caught.value.code == status, path
        assert stage.steps == 0


def test_what_goes_wrong_is_told(stage, monkeypatch):
    def step(keys, agent):
        raise RuntimeError("out of fuel")

    with serving(stage) as server:
        monkeypatch.setattr(stage, "step", step)
        assert refused(server) == "RuntimeError: out of fuel"
        assert post(server.address, "/show")["step"] == 0


def test_a_dream_has_an_end(stage, monkeypatch):
    monkeypatch.setattr(play, "LONGEST", 2)
    with serving(stage) as server:
        assert [post(server.address, "/step")["step"] for _ in range(2)] == [1, 2]
        assert refused(server) == "the dream has gone on for 2 steps; begin another episode"
        assert post(server.address, "/reset")["step"] == 0


def test_the_chance_that_the_dream_still_lasts(stage, monkeypatch):
    chances = iter([0.9, 0.5, 1.0])
    monkeypatch.setattr(stage._dream, "outcome", lambda state: (torch.zeros(1), torch.tensor([next(chances)])))
    stage.step()
    stage.step()
    assert stage._lasts == pytest.approx([1, 0.9, 0.45])
    stage.rewind(1)
    stage.step()
    assert stage._lasts == pytest.approx([1, 0.9, 0.9])


def test_numbers_that_are_none_are_not_sent(stage):
    with serving(stage) as server:
        stage._states[-1].deter.fill_(float("nan"))
        assert "not JSON compliant" in refused(server)


def refused(server):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server.address, "/step")
    assert caught.value.code == 500
    return caught.value.read().decode()


def test_a_taken_port(stage):
    with serving(stage) as server, pytest.raises(UserMistake, match=r"cannot be used \(Address already in use\)"):
        Server(stage, "", server.port)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_in_a_browser(tmp_path, monkeypatch):
    config, *_ = tiny.tiny_run()
    vector = envs.Vector([lambda: envs.make("mixed:Signals")], [0])
    stage = Stage(tiny.tiny_agent(config, vector), envs.make("mixed:Signals"), seed=1)
    with serving(stage, "Signals, dreamt") as server, Browser(server.address) as page:
        page.until(
            "document.title === 'Signals, dreamt' && document.querySelector('#status').textContent.includes('step 0')"
        )
        assert page.get("document.querySelectorAll('#dream img').length") == 1
        assert page.get("document.querySelectorAll('#dream .bar').length") == 2 + 1 + 2
        assert page.get("document.getElementById('real').hidden")
        page.press("n")
        page.until("last.step === 1")
        page.press("v")
        page.until("!document.getElementById('real').hidden")
        assert page.get("document.querySelector('#real img').naturalWidth") == 48
        # Held down, the key is what the environment is told.
        page.key("keyDown", "ArrowRight")
        page.press("n")
        page.until("last.step === 2")
        page.key("keyUp", "ArrowRight")
        assert stage._actions[1].tolist() == [0, 1, 0, 1, 0]
        page.press("p")
        page.until("last.step > 10")
        page.press("p")
        page.until("document.getElementById('status').textContent.includes('paused')")
        time.sleep(0.3)
        step = page.get("last.step")
        # Something in the curve's colour is drawn in each.
        pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        orange = "(x, i, all) => i % 4 === 0 && x > 200 && all[i + 1] > 100 && all[i + 2] < 120 && all[i + 3] > 200"
        assert page.get(f"[...document.querySelectorAll('canvas')].map(c => {pixels}.some({orange}))") == [True] * 3
        page.press("b")
        page.until(f"last.step === {max(0, step - 15)}")
        assert page.get("history.reward.length") == max(0, step - 15) + 1
        page.press("r")
        page.until("last.step === 0")
        # The agent plays.
        chosen, step = [], stage.step
        monkeypatch.setattr(stage, "step", lambda keys, agent: (chosen.append(agent), step(keys, agent)))
        page.press("m")
        page.until("on('agent')")
        page.press("n")
        page.until("last.step === 1")
        assert chosen == [True]
        assert page.errors == []
        (tmp_path / "page.png").write_bytes(page.screenshot())


def test_the_command(tmp_path):
    folder = tiny.trained_run(tmp_path / "run", "gym/CartPole-v1", 30)
    import signal
    import sys

    command = [sys.executable, "-u", "-m", "dreamer", "play", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("Open http://127.0.0.1:") and "Ctrl-C ends it." in line
        address = line.split()[1]
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert "dreamt by the world model" in answer.read().decode()
        shown = post(address, "/step", b'{"keys": ["ArrowRight"], "real": true}')
        assert shown["step"] == 1 and len(shown["dream"]["vector"]) == 4
        assert shown["real"]["picture"].startswith("data:image/png;base64,")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0 and "Traceback" not in said, said
    finally:
        process.kill()
