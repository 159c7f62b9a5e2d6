import functools
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import envs
from envs import workers

OWN = """
import faulthandler
import os
import time
import gymnasium
import numpy as np
from gymnasium import spaces

class Counting(gymnasium.Env):
    # Observes its count, the action it was given, a random number and its process.
    observation_space = spaces.Box(-1, 1e7, (4,), np.float32)
    action_space = spaces.Discrete(100)

    def __init__(self, length=5, says="", sleeps=0.0):
        self.length, self.says, self.sleeps = length, says, sleeps
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observe(-1), {}

    def step(self, action):
        time.sleep(self.sleeps)
        if self.says:
            print(self.says)
        self.count += 1
        return self.observe(action), self.count / 2, self.count >= self.length, self.count == 3, {}

    def observe(self, action):
        return np.array([self.count, action, self.np_random.random(), os.getpid()], np.float32)

    def get_state(self):
        state = self.np_random.bit_generator.state["state"]
        return {"count": self.count, "state": str(state["state"]).encode(), "inc": str(state["inc"]).encode()}

    def set_state(self, state):
        self.reset(seed=0)
        self.count = state["count"]
        words = {"state": int(state["state"]), "inc": int(state["inc"])}
        self.np_random.bit_generator.state = self.np_random.bit_generator.state | {"state": words}

    def render(self):
        return np.full((2, 3, 3), self.count, np.uint8)

class Failing(Counting):
    def step(self, action):
        if action == 66:
            raise KeyError("no such door")
        if action == 67:
            import envs
            raise envs.TaskError("Mend this.")
        if action == 68:
            os._exit(3)
        if action == 69:
            time.sleep(60)
        if action == 70:
            faulthandler._sigsegv()
        return super().step(action)

class Kind:
    pass

class OwnKind(Counting):
    def get_state(self):
        return {"kind": Kind()}

class Forking(Failing):
    def reset(self, *, seed=None, options=None):
        import subprocess
        self.helper = self.helper if hasattr(self, "helper") else subprocess.Popen(["sleep", "20"])
        return super().reset(seed=seed)

class NeverMade(Counting):
    def __init__(self):
        time.sleep(60)

class Wide(Counting):
    observation_space = spaces.Box(-1, 1e7, (5,), np.float32)

    def observe(self, action):
        return np.zeros(5, np.float32)

class NeverCloses(Counting):
    def close(self):
        time.sleep(60)

class Sly(Counting):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {"final_obs": observation}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_for_workers.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield "own_for_workers"


@pytest.fixture
def open_vector(own):
    """Makes a Vector of classes of OWN, one for each dict of options, and closes it afterwards."""
    opened = []

    def open_(name, *options, processes=True, **given):
        factories = [functools.partial(envs.make, f"{own}:{name}", **keywords) for keywords in options]
        opened.append(envs.Vector(factories, range(7, 7 + len(factories)), processes, **given))
        return opened[-1]

    yield open_
    for vector in opened:
        vector.close()


def act(vector, *actions):
    return vector.step({"action": np.array(actions)})


def processes(vector):
    return [int(pid) for pid in act(vector, *[0] * len(vector)).observation["vector"][:, 3]]


def is_there(pid):
    """Also of a process that has ended while its parent has not noticed."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pids, seconds=10.0):
    until = time.monotonic() + seconds
    while any(map(is_there, pids)):
        assert time.monotonic() < until, "still there"
        time.sleep(0.02)


def assert_same_rows(row, expected, columns=slice(None)):
    assert row.observation.keys() == expected.observation.keys()
    for key, value in row.observation.items():
        assert value.dtype == expected.observation[key].dtype
        assert np.array_equal(value[:, columns], expected.observation[key][:, columns])
    for mine, theirs in zip(row[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


def test_same_rows_as_in_one_process(open_vector):
    options = {"length": 5}, {"length": 1}, {"length": 2}
    vector, local = open_vector("Counting", *options), open_vector("Counting", *options, processes=False)
    assert len(vector) == 3 and vector.repeat == local.repeat == 1 and vector.notes == local.notes
    assert vector.observation_space == local.observation_space and vector.action_space == local.action_space
    firsts = lasts = 0
    for t in range(12):
        row, expected = act(vector, t, t + 20, t + 40), act(local, t, t + 20, t + 40)
        assert_same_rows(row, expected, columns=slice(3))
        firsts, lasts = firsts + row.is_first, lasts + row.is_last
        pids = row.observation["vector"][:, 3].astype(int).tolist()
        assert len({*pids, os.getpid()}) == 4
    assert firsts.tolist() == [3, 6, 4] and lasts.tolist() == [3, 6, 4]
    assert [*row.observation["vector"][:, 1]] == [11, 31, 51]


def test_the_same_images_as_in_one_process(gl, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)  # each process chooses what works
    factories = [functools.partial(envs.make, "dmc_vision/reacher_easy", size=48)] * 2
    local = envs.Vector(factories, [1, 2])
    vector = envs.Vector(factories, [1, 2], processes=True)
    random = np.random.default_rng(0)
    for _ in range(5):
        action = {"action": random.uniform(-1, 1, (2, 2)).astype(np.float32)}
        row = vector.step(action)
        assert_same_rows(row, local.step(action))
    assert not np.array_equal(*row.observation["image"])
    vector.close(), local.close()


def test_they_step_at_the_same_time(open_vector):
    vector = open_vector("Counting", *[{"sleeps": 0.05, "length": 99}] * 3)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        row = act(vector, 0, 0, 0)
        if not row.is_first.any():
            seconds.append(time.perf_counter() - start)
    assert len(seconds) >= 4 and 0.05 < np.median(seconds) < 0.12


def test_a_state_goes_on_in_either_kind_of_process(open_vector):
    options = {"length": 2}, {"length": 9}
    vector, local = open_vector("Counting", *options), open_vector("Counting", *options, processes=False)
    assert vector.can_save_state
    for t in range(4):
        act(vector, t, t)
    local.set_state(vector.get_state())
    for t in range(5):
        assert_same_rows(act(local, t, t), act(vector, t, t), columns=slice(3))
    other = open_vector("Counting", *options)
    other.set_state(local.get_state())
    for t in range(5):
        assert_same_rows(act(other, t, t), act(local, t, t), columns=slice(3))


def test_a_single_worker(own):
    worker = envs.Worker(functools.partial(envs.make, f"{own}:Counting"))
    assert worker.facts.repeat == 1 and worker.facts.action_space["action"].n == 100
    assert worker.reset(0).observation["vector"][:2].tolist() == [0, -1]
    assert worker.step({"action": 8})[1:] == (0.5, False, False)
    state = worker.get_state()
    assert state["count"] == 1
    worker.step({"action": 8})
    assert (worker.render() == 2).all()
    worker.set_state(state)
    assert (worker.render() == 1).all()
    worker.close(), worker.close()


def test_mistakes_keep_their_words(own):
    with pytest.raises(envs.TaskError) as there:
        envs.Vector([functools.partial(envs.make, f"{own}:Counter")], [0], processes=True)
    with pytest.raises(envs.TaskError) as here:
        envs.make(f"{own}:Counter")
    assert str(there.value) == str(here.value) and "Did you mean 'Counting'?" in str(here.value)


def test_exceptions_of_a_step(open_vector):
    vector = open_vector("Failing", {}, {})
    act(vector, 0, 0)
    with pytest.raises(envs.EnvironmentFailed) as caught:
        act(vector, 66, 5)
    assert not isinstance(caught.value, envs.WorkerDied)
    start = "environment 1 of 2 raised KeyError in step: 'no such door' ("
    assert str(caught.value).startswith(start) and "own_for_workers.py, line " in str(caught.value)
    if vector._processes:
        (note,) = caught.value.__notes__
        assert "Traceback" in note and 'raise KeyError("no such door")' in note
    with pytest.raises(envs.TaskError, match=r"^Mend this\.$"):
        act(vector, 1, 67)
    # Nobody heard the answer of the first one's action 1 nor of the second one's 5.
    assert act(vector, 2, 3).observation["vector"][:, :2].tolist() == [[2, 2], [2, 3]]


def test_a_killed_worker_is_named(open_vector):
    vector = open_vector("Counting", {}, {})
    pids = processes(vector)
    os.kill(pids[1], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(
            envs.WorkerDied, match=rf"environment 2 of 2 \(pid {pids[1]}\) was killed by signal SIGKILL"
        ):
            act(vector, 0, 0)
    start = time.monotonic()
    vector.close()
    wait_until_gone(pids)
    assert time.monotonic() - start < workers.GRACE_SECONDS


def test_a_killed_worker_is_started_again(open_vector):
    vector, said = open_vector("Counting", {}, {}, restarts=1), []
    vector.on_restart = said.append
    pids = processes(vector)
    os.kill(pids[1], signal.SIGKILL)
    row = act(vector, 3, 4)
    assert row.is_first.tolist() == [False, True] and row.observation["vector"][:, 1].tolist() == [3, -1]
    assert row.observation["vector"][0, 3] == pids[0] and row.observation["vector"][1, 3] not in pids
    assert act(vector, 5, 6).observation["vector"][:, :2].tolist() == [[2, 5], [1, 6]]
    assert [f"(pid {pids[1]}) was killed by signal SIGKILL" in str(error) for error in said] == [True]


def test_one_that_hangs_is_killed_and_started_again(open_vector):
    vector, said = open_vector("Failing", {}, {}, restarts=1, patience=5.0), []
    vector.on_restart = said.append
    pids = processes(vector)
    row = act(vector, 3, 69)
    assert row.is_first.tolist() == [False, True] and row.observation["vector"][1, 3] != pids[1]
    (error,) = said
    assert re.fullmatch(
        r"environment 2 of 2 did not answer within 5 s \(.*own_for_workers.py, line \d+\)\.", str(error)
    )
    (note,) = said[0].__notes__
    assert "own_for_workers.py" in note and "in step" in note
    wait_until_gone(pids[1:])
    with pytest.raises(envs.WorkerDied, match="environment 2 of 2 did not answer within 5 s"):
        act(vector, 3, 69)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal")
def test_one_that_crashes_says_where(open_vector):
    vector = open_vector("Failing", {}, {})
    act(vector, 0, 0)
    with pytest.raises(envs.WorkerDied, match="environment 1 of 2 .* was killed by signal SIGSEGV") as caught:
        act(vector, 70, 0)
    (note,) = caught.value.__notes__
    assert "Segmentation fault" in note and "own_for_workers.py" in note and "in step" in note


def test_an_answer_that_cannot_be_read_here_fails_at_once(own, open_vector, monkeypatch):
    vector = open_vector("OwnKind", {}, patience=20.0)
    act(vector, 0)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, own, raising=False)
        patch.setattr(sys, "path", [path for path in sys.path if not (os.path.exists(os.path.join(path, own + ".py")))])
        begun = time.monotonic()
        with pytest.raises(envs.EnvironmentFailed, match="raised ModuleNotFoundError when its answer was read here"):
            vector.get_state()
        assert act(vector, 1).observation["vector"][0, :2].tolist() == [1, 1]
        assert time.monotonic() - begun < 10


def test_one_that_crashes_while_something_it_started_lives(open_vector):
    vector = open_vector("Forking", {}, patience=30.0)
    act(vector, 0)
    begun = time.monotonic()
    with pytest.raises(envs.WorkerDied, match="was killed by signal SIGSEGV"):
        act(vector, 70)
    assert time.monotonic() - begun < 15


def test_one_that_is_never_made_is_given_up(own):
    factory = functools.partial(envs.make, f"{own}:NeverMade")
    begun = time.monotonic()
    with pytest.raises(envs.WorkerDied, match="did not answer within 2 s") as caught:
        envs.Vector([factory], [0], processes=True, patience=2.0)
    assert time.monotonic() - begun < 20 and "in __init__" in caught.value.__notes__[0]


def test_a_worker_that_ends_by_itself(open_vector):
    vector = open_vector("Failing", {}, {})
    act(vector, 0, 0)
    with pytest.raises(envs.WorkerDied, match="environment 1 of 2 .* exit code 3"):
        act(vector, 68, 0)


def test_closing_ends_all(open_vector):
    vector = open_vector("Counting", {}, {}, {})
    pids = processes(vector)
    start = time.monotonic()
    vector.close()
    assert time.monotonic() - start < workers.GRACE_SECONDS
    wait_until_gone(pids, seconds=0)
    vector.close()


def test_one_that_does_not_close_is_killed(open_vector, monkeypatch):
    vector = open_vector("NeverCloses", {}, {})
    pids = processes(vector)
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.3)
    start = time.monotonic()
    vector.close()
    assert time.monotonic() - start < 5
    wait_until_gone(pids, seconds=0)


def test_one_that_is_forgotten_ends(own):
    vector = envs.Vector([functools.partial(envs.make, f"{own}:Counting")], [0], processes=True)
    pids = processes(vector)
    del vector
    wait_until_gone(pids)


def test_environments_must_be_alike(own):
    factories = [functools.partial(envs.make, f"{own}:{name}") for name in ("Counting", "Wide")]
    with pytest.raises(envs.TaskError, match="differ in their spaces"):
        envs.Vector(factories, [0, 1], processes=True)


def test_environments_that_reset_themselves_are_refused(open_vector):
    vector = open_vector("Sly", {"length": 1})
    act(vector, 0)
    with pytest.raises(envs.TaskError, match="resets itself"):
        act(vector, 0)


def test_what_cannot_be_sent_is_told():
    with pytest.raises(envs.TaskError, match="environment 1 of 1 cannot be sent .* function of a module"):
        envs.Vector([lambda: envs.make("gym/CartPole-v1")], [0], processes=True)


def start_script(own, body, **keywords):
    """A script without a main guard, told to whom its print statements go."""
    code = (
        f"import functools, os, signal, sys, time\nsys.path[:0] = {sys.path!r}\nimport envs, numpy as np\n"
        f"factories = [functools.partial(envs.make, {own + ':Counting'!r})] * 2\n"
        "def pids():\n"
        "    rows = vector.step({'action': np.zeros(2, int)})\n"
        "    return rows.observation['vector'][:, 3].astype(int).tolist()\n"
        "def say(*words): print(*words, flush=True)\n" + body
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code], text=True, **pipes, **keywords)


def test_the_end_of_the_interpreter_ends_them_without_a_word(own):
    script = start_script(own, "vector = envs.Vector(factories, [0, 1], processes=True); say(*pids())")
    out, err = script.communicate()
    assert script.returncode == 0 and err == ""
    assert len(out.split()) == 2
    wait_until_gone(out.split(), seconds=0)


def test_they_do_not_outlive_a_killed_parent(own):
    script = start_script(own, "vector = envs.Vector(factories, [0, 1], processes=True); say(*pids()); time.sleep(60)")
    assert len(script.stdout.readline().split()) == 2
    script.kill()
    # Returns once nobody has the script's stderr open any more.
    _, err = script.communicate(timeout=10)
    assert err == ""


def test_one_that_hangs_does_not_outlive_a_killed_parent(own):
    script = start_script(
        own,
        f"factories = [functools.partial(envs.make, {own + ':Failing'!r})]\n"
        "vector = envs.Vector(factories, [0], processes=True)\n"
        "row = vector.step({'action': np.zeros(1, int)})\n"
        "say(int(row.observation['vector'][0, 3]))\n"
        "vector.step({'action': np.array([69])})\n",
    )
    pid = int(script.stdout.readline())
    time.sleep(0.5)
    script.kill()
    script.communicate(timeout=20)
    wait_until_gone([pid])


def test_signals_to_the_group_leave_them_alone(own):
    """As a terminal sends Ctrl-C: once while they start, and once in the midst of stepping."""
    script = start_script(
        own,
        "heard = []\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(number, lambda number, _: heard.append(number))\n"
        "workers = [envs.Worker(factory) for factory in factories]\n"
        "say('starting')\n"
        "sys.stdin.readline()\n"
        "say(*[worker.facts.repeat for worker in workers])\n"
        "for worker in workers: worker.close()\n"
        "vector = envs.Vector(factories, [0, 1], processes=True)\n"
        "say(*pids())\n"
        "sys.stdin.readline()\n"
        "say(*pids())\n"
        "vector.close()\n"
        "say(sorted(heard))\n",
        start_new_session=True,
    )

    def interrupt():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.killpg(script.pid, number)
        script.stdin.write("go on\n")
        script.stdin.flush()

    assert script.stdout.readline() == "starting\n"
    interrupt()
    assert script.stdout.readline() == "1 1\n"
    before = script.stdout.readline()
    interrupt()
    assert script.stdout.readline() == before and len(before.split()) == 2
    out, err = script.communicate()
    assert out.strip() == str(sorted([int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)] * 2)) and err == ""
    assert script.returncode == 0


def test_to_be_stopped_for_a_while_is_not_to_hang(own):
    """As by Ctrl-Z, for longer than an environment may take."""
    script = start_script(
        own,
        "factories = [functools.partial(factory, sleeps=0.5) for factory in factories]\n"
        "vector = envs.Vector(factories, [0, 1], processes=True, patience=5); pids(); say('steps'); say(*pids())",
        start_new_session=True,
    )
    assert script.stdout.readline() == "steps\n"
    time.sleep(0.1)
    os.killpg(script.pid, signal.SIGSTOP)
    time.sleep(5.5)
    os.killpg(script.pid, signal.SIGCONT)
    out, err = script.communicate()
    assert len(out.split()) == 2 and err == ""


def test_what_an_environment_prints_is_no_answer(own):
    script = start_script(
        own,
        f"factories = [functools.partial(envs.make, {own + ':Counting'!r}, says='hear, hear')] * 2\n"
        "vector = envs.Vector(factories, [0, 1], processes=True); pids(); pids(); vector.close()",
    )
    out, err = script.communicate()
    assert script.returncode == 0 and out == ""
    # A step each, and the three in which `make` looks at an unknown environment.
    assert err.replace("\n", "") == "hear, hear" * 2 * (1 + 3)


def test_a_factory_of_the_main_script_is_told(own):
    script = start_script(
        own,
        "def make(): return envs.make('gym/CartPole-v1')\n"
        "try: envs.Vector([make], [0], processes=True)\n"
        "except envs.TaskError as error: say(error)\n",
    )
    out, err = script.communicate()
    assert "define it in a module, not in the main script" in out and err == ""


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("dmc_vision/cartpole_swingup", True),
        ("dmc/cartpole_swingup", False),
        ("atari/pong", False),
        ("atari100k/pong", False),
        ("gym/CartPole-v1", False),
        ("own_for_workers:Counting", False),
    ],
)
def test_which_tasks_step_in_processes(own, task, expected):
    assert envs.steps_in_processes(task, 4) is expected


def test_a_long_run_steps_other_people_s_code_in_processes(own):
    wanted = {task: envs.wants_processes(task) for task in ("atari/pong", "dmc/walker_walk", "dmc_vision/walker_walk")}
    assert wanted == {"atari/pong": False, "dmc/walker_walk": False, "dmc_vision/walker_walk": True}
    assert envs.wants_processes("gym/CartPole-v1") and envs.wants_processes(f"{own}:Counting")


def test_tasks_without_a_rule_are_timed(own):
    assert envs.steps_in_processes(f"{own}:Counting", 2, sleeps=0.02)
    assert not envs.steps_in_processes(f"{own}:Counting", 1, sleeps=0.02)
    assert envs.steps_in_processes(f"{own}:Counting", 2, sleeps=0.003, repeat=4)
    with pytest.raises(envs.TaskError, match="no option 'sleep'"):
        envs.steps_in_processes(f"{own}:Counting", 2, sleep=0.02)
