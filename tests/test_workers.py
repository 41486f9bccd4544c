"""Worker processes: order, laziness, errors that are passed on unchanged, and no processes left at the end."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mt.errors import DataError, MTError
from mt.system.signals import exit_on_signals, raise_pending_exit
from mt.system.workers import WorkerLost, Workers, run_apart
from tests.clock import comes_true

ROOT = Path(__file__).resolve().parent.parent
_given = 0


def keep(number: int) -> None:
    global _given
    _given = number


def what_was_kept(_item: int) -> int:
    return _given


def slow_square(number: int) -> int:
    time.sleep(0.05 if number % 2 == 0 else 0)
    return number * number


def process_id(_item: object = None) -> int:
    return os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("line 3 is not a number")
    return number


class OddError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def raise_odd_error(_item: int) -> None:
    raise OddError(1, 2)


def kill_itself(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave(status: int) -> None:
    os._exit(status)


def interrupt_itself(number: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return number


def finish_late(finished: Path) -> None:
    time.sleep(20)
    finished.touch()


def is_running(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("n", [0, 1, 2])
def test_results_have_the_order_of_the_items(n: int) -> None:
    with Workers(n) as pool:
        assert list(pool.map(slow_square, range(7), ahead=4)) == [0, 1, 4, 9, 16, 25, 36]
        assert list(pool.map(slow_square, [], ahead=4)) == []
        assert pool.submit(operator.add, 2, 3).result() == 5
        in_this_process = pool.submit(process_id).result() == os.getpid()
        assert in_this_process == (n == 0)


def test_items_are_read_only_as_results_are_taken() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    with Workers(1) as pool:
        results = pool.map(abs, items(), ahead=3)
        assert (next(results), len(drawn)) == (0, 3)
        assert (next(results), len(drawn)) == (1, 4)
        results.close()
        assert pool.submit(abs, -5).result() == 5  # the workers can do other work
    assert len(drawn) == 4


@pytest.mark.parametrize("n", [0, 1])
def test_each_worker_runs_the_initializer_first(n: int) -> None:
    try:
        with Workers(n, keep, (7,)) as pool:
            assert list(pool.map(what_was_kept, range(2), ahead=2)) == [7, 7]
    finally:
        keep(0)


@pytest.mark.parametrize("n", [0, 1])
def test_an_error_is_raised_unchanged_after_the_results_before_it(n: int) -> None:
    with Workers(n) as pool:
        results = pool.map(refuse, range(9), ahead=2)
        assert [next(results), next(results), next(results)] == [0, 1, 2]
        with pytest.raises(DataError) as caught:
            next(results)
        assert str(caught.value) == "line 3 is not a number"
        assert pool.submit(refuse, 4).result() == 4


def test_an_error_has_the_traceback_of_the_worker() -> None:
    with Workers(1) as pool:
        with pytest.raises(DataError) as caught:
            pool.submit(refuse, 3).result()
        assert 'raise DataError("line 3 is not a number")' in "".join(caught.value.__notes__)
        with pytest.raises(RuntimeError, match=r"OddError: 1 and 2"):  # it cannot be unpickled
            pool.submit(raise_odd_error, 3).result()
        with pytest.raises(SystemExit, match=r"^3"):
            pool.submit(sys.exit, 3).result()
        with pytest.raises(AttributeError, match=r"local object"):
            pool.submit(lambda: 1).result()
        assert pool.submit(refuse, 4).result() == 4


def test_the_error_for_a_killed_worker_mentions_memory() -> None:
    with pytest.raises(MTError) as caught, Workers(1) as pool:
        list(pool.map(kill_itself, range(9), ahead=9))
    assert str(caught.value) == (
        "a worker process was killed, probably because memory ran out: free some, or give this job more"
    )


def test_a_worker_killed_while_it_receives_a_large_item_does_not_block_the_parent() -> None:
    with Workers(1) as pool:
        worker = pool.submit(process_id).result()
        os.kill(worker, signal.SIGSTOP)  # so that the pipe to the worker fills up
        future = pool.submit(len, bytes(5_000_000))
        threading.Timer(0.1, os.kill, (worker, signal.SIGKILL)).start()
        with pytest.raises(MTError, match=r"^a worker process was killed"):
            future.result(timeout=60)


def test_the_error_for_a_worker_that_exits_has_its_status() -> None:
    with pytest.raises(MTError) as caught, Workers(1) as pool:
        pool.submit(leave, 5).result()
    assert str(caught.value) == "a worker process ended before its work was done (exit status 5): start again"


def test_an_exception_in_the_block_ends_working_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workers: list[int] = []

    def be_interrupted() -> None:
        with Workers(2) as pool:
            workers.extend({pool.submit(process_id).result() for _ in range(4)})
            for _ in range(4):
                pool.submit(finish_late, tmp_path / "finished")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert workers
    assert not any(map(is_running, workers))
    assert not (tmp_path / "finished").exists()
    assert capfd.readouterr() == ("", "")


def test_workers_ignore_ctrl_c() -> None:
    with Workers(1) as pool:
        assert list(pool.map(interrupt_itself, range(2), ahead=1)) == [0, 1]


def test_run_apart_uses_another_process_and_calls_back_while_waiting() -> None:
    calls: list[int] = []
    assert run_apart(process_id) != os.getpid()
    assert run_apart(time.sleep, 1.05, while_waiting=lambda: calls.append(1)) is None
    assert calls
    with pytest.raises(DataError, match=r"^line 3 is not a number"):
        run_apart(refuse, 3)


def test_sigterm_raises_an_exit_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, exit_on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    elsewhere: list[object] = []

    def look() -> None:
        with exit_on_signals():
            elsewhere.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert elsewhere == [before]


# There is no main guard: if the workers imported the script, they would run it.
SCRIPT = """
import os, sys, time
from mt.system.signals import exit_on_signals
from mt.system.workers import Workers
print("start", flush=True)
with exit_on_signals(), Workers(2) as pool:
    print(*pool.map(abs, [-1, -2], ahead=2), flush=True)
    workers = {pool.submit(os.getpid).result() for _ in range(20)}
    if len(sys.argv) > 1:
        print(*workers, flush=True)
        list(pool.map(time.sleep, [1_000] * 4, ahead=4))
"""


@pytest.mark.parametrize("how", ["script", "-c", "stdin"])
def test_a_program_without_a_main_guard_runs_once(tmp_path: Path, how: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pickle.py").write_text("raise SystemExit('a file of the user')")
    arguments = {"script": [str(tmp_path / "script.py")], "-c": ["-c", SCRIPT], "stdin": ["-"]}[how]
    if how == "script":
        (tmp_path / "pickle.py").unlink()  # Python imports from the folder of a script first
    ran = subprocess.run(
        [sys.executable, *arguments],
        input=SCRIPT if how == "stdin" else "",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT if how != "script" else tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("start\n1 2\n", "", 0)


def test_a_program_ends_without_waiting_for_unused_results() -> None:
    code = "import time; from mt.system.workers import Workers; Workers(1).__enter__().submit(time.sleep, 1_000)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals, status: int) -> None:
    script = f"try:\n{''.join(f'    {line}{chr(10)}' for line in SCRIPT.splitlines())}"
    script += "except KeyboardInterrupt:\n    raise SystemExit(130)\n"
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), "long"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # In its own process group, as in a terminal, where Ctrl-C reaches the whole group.
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline() for _ in range(2)] == ["start\n", "1 2\n"]
        workers = [int(worker) for worker in process.stdout.readline().split()]
        assert workers
        assert all(map(is_running, workers))
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        assert process.wait(timeout=60) == status
        assert comes_true(lambda: not any(map(is_running, workers)))
        assert process.stderr.read() == ""


def test_a_ctrl_c_that_python_drops_is_raised_at_the_next_check() -> None:
    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with exit_on_signals():
        raise_pending_exit()
        with pytest.MonkeyPatch.context() as quiet:
            quiet.setattr(sys, "unraisablehook", lambda _: None)
            dropping = Dropping()
            del dropping
        with pytest.raises(KeyboardInterrupt):
            raise_pending_exit()
    raise_pending_exit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_task_that_is_given_to_killed_workers_fails_at_once() -> None:
    with Workers(1) as workers:
        workers.kill()
        with pytest.raises(WorkerLost, match="the worker processes have ended"):
            workers.submit(os.getpid).result(timeout=60)
