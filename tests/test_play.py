"""Playing the dream: the keys, the stage, and the page in a real browser."""

import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tiny
from chromium import Browser
from click.testing import CliRunner

import envs
from dreamer.cli import main
from dreamer.controls import Controls
from dreamer.dream import record
from dreamer.errors import UserMistake
from dreamer.play import Server, Stage
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


def test_a_choice_of_two_keeps_what_was_chosen():
    controls = Controls(ActionSpec((ActionPart("action", classes=(2,)),)))
    taken = [int(controls.action(keys).argmax()) for keys in ([], ["ArrowRight"], [], ["ArrowLeft"], [])]
    assert taken == [0, 1, 1, 0, 0] and controls.legend == ["action: ← →"]


def test_every_kind_of_action():
    spec = ActionSpec((ActionPart("move", size=3), ActionPart("set", classes=(3, 5))))
    controls = Controls(spec)
    assert controls.legend == ["move 0: ← →", "move 1: ArrowDown ↑".replace("ArrowDown", "↓"), "move 2: a d",
                               "set 0: s w", "set 1: y u i o x"]  # fmt: skip
    assert controls.action([]).tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    assert controls.action(["ArrowRight", "ArrowDown", "a", "d", "w", "o"]).tolist() == [
        1, -1, 0, 0, 0, 1, 0, 0, 0, 1, 0
    ]  # fmt: skip


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
    # act, a choice of four, takes a row of digits; move the second and third pair of keys, of which one is pressed.
    assert real["seen"]["where"][2:] == [0, 2, 2, 1, 0] and not real["over"] and real["reward"] == 3
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
    stage.step()
    stage.reset()
    assert stage.show(real=True)["real"]["seen"]["where"][2:4] == [1, 0] and stage.steps == 0


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
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server.address, "/step")
        assert caught.value.code == 500 and caught.value.read() == b"RuntimeError: out of fuel"
        assert post(server.address, "/show")["step"] == 0


def test_a_taken_port(stage):
    with serving(stage) as server, pytest.raises(UserMistake, match=r"cannot be used \(Address already in use\)"):
        Server(stage, "", server.port)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_in_a_browser(agent, tmp_path):
    config, mixed, *_ = tiny.tiny_run()
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
        page.press("b")
        page.until(f"last.step === {max(0, step - 15)}")
        assert page.get("history.reward.length") == max(0, step - 15) + 1
        page.press("r")
        page.until("last.step === 0")
        # Something is drawn in each curve.
        page.press("n")
        page.until("last.step === 1")
        pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        drawn = f"[...document.querySelectorAll('canvas')].every(c => {pixels}.some(x => x))"
        assert page.get(drawn)
        assert page.errors == []
        (tmp_path / "page.png").write_bytes(page.screenshot())


def test_the_command(tmp_path):
    folder = tmp_path / "run"
    widths = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
    arguments = ["--env", "gym/CartPole-v1", "--size", "1m", "--frames", "30", "--run", str(folder), *widths]
    assert CliRunner().invoke(main, ["train", *arguments]).exit_code == 0
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
