"""A run's folder is whole, of one process and of one set of settings, or the second one is told why not."""

import os
import signal
import subprocess
import sys

import pytest

from nspec_hf.core import (
    ConfigError,
    FolderInUseError,
    atomic_folder,
    claim_folder,
    lock_folder,
    require_writable,
)
from nspec_hf.recording import RecordConfig

LOCK = "import sys; from nspec_hf.core import lock_folder\nwith lock_folder(sys.argv[1]): print('held')"


def test_a_folder_goes_on_with_the_settings_that_it_was_begun_with(tmp_path):
    settings = {"record": RecordConfig(), "pairs": ["en-de"], "model": {}}
    claim_folder(tmp_path / "new", settings)
    claim_folder(tmp_path / "new", settings)
    with pytest.raises(ConfigError, match=r"record.count: 'tokens' then, 'sentences' now"):
        claim_folder(tmp_path / "new", {**settings, "record": RecordConfig(count="sentences")})
    with pytest.raises(ConfigError, match=r"model.d_model: None then, 4 now; pairs: .*another folder"):
        claim_folder(tmp_path / "new", {**settings, "pairs": [], "model": {"d_model": 4}})


def test_a_folder_whose_settings_are_damaged_is_refused_by_name(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match=r"settings\.json is no readable JSON"):
        claim_folder(tmp_path, {})


def test_a_second_process_is_refused_while_the_first_writes_and_let_in_afterwards(tmp_path):
    def other():
        command = [sys.executable, "-c", LOCK, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with lock_folder(tmp_path):
        refused = other()
    assert "FolderInUseError" in refused.stderr
    assert str(tmp_path) in refused.stderr
    assert other().stdout == "held\n"


FORKED = """
import os, sys, time
from nspec_hf.core import FolderInUseError, lock_folder

with lock_folder(sys.argv[1]):
    if os.fork() == 0:
        try:
            with lock_folder(sys.argv[1]):
                print("let in", flush=True)
        except FolderInUseError:
            print("refused", flush=True)
        time.sleep(120)
    time.sleep(120)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_ends_with_the_process_that_took_it_whatever_it_has_forked(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as ran:
        try:
            assert ran.stdout.readline() == "refused\n"
            with pytest.raises(FolderInUseError), lock_folder(tmp_path):
                pass
            ran.kill()
            ran.wait()
            with lock_folder(tmp_path):
                pass
        finally:
            os.killpg(ran.pid, signal.SIGKILL)


def test_the_process_that_holds_a_folder_may_lock_it_once_more(tmp_path):
    with lock_folder(tmp_path), lock_folder(tmp_path / "."):
        pass
    assert issubclass(FolderInUseError, BlockingIOError)


def test_a_folder_is_filled_beside_and_then_there(tmp_path):
    with atomic_folder(tmp_path / "a" / "new") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "a" / "new").exists()
    assert (tmp_path / "a" / "new" / "file").read_text() == "x"
    assert os.listdir(tmp_path / "a") == ["new"]


def test_an_empty_folder_is_filled_also_through_a_link_and_as_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "file").write_text("x")
    assert os.listdir(tmp_path / "real") == ["file"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(".") as partial:
        (partial / "file").write_text("x")
    assert os.listdir(tmp_path / "here") == ["file"]


def test_a_link_to_nothing_is_refused_before_the_work(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(ConfigError, match=r"link is a link to .*nowhere, which is not there"),
        atomic_folder(tmp_path / "link"),
    ):
        pytest.fail("the work began")
    assert os.listdir(tmp_path) == ["link"]


def test_a_folder_whose_making_fails_is_not_there_and_one_with_files_is_refused(tmp_path):

    def fails():
        with atomic_folder(tmp_path / "new") as partial:
            (partial / "file").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is there already"), atomic_folder(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_that_another_process_fills_meanwhile_gets_no_file_of_this_one(is_there, tmp_path):
    if is_there:
        (tmp_path / "new").mkdir()

    def fill_both():
        with atomic_folder(tmp_path / "new") as mine:
            (mine / "weights").write_text("mine")
            with atomic_folder(tmp_path / "new") as other:
                (other / "weights").write_text("other")
                (other / "masks").write_text("other")

    with pytest.raises(ConfigError, match="is there already; give a new folder"):
        fill_both()
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {
        "weights": "other",
        "masks": "other",
    }
    assert os.listdir(tmp_path) == ["new"]


def test_an_output_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        require_writable(tmp_path)
    with pytest.raises(OSError, match=r"cannot be written .*file/result\.json"):
        require_writable(tmp_path / "file" / "result.json")
    with pytest.raises(OSError, match=r"cannot be written .*file"):
        require_writable(tmp_path / "file", is_folder=True)
    require_writable(tmp_path / "new" / "deep" / "result.json")
    require_writable(tmp_path / "folder", is_folder=True)
    require_writable(tmp_path / "file")
    require_writable(os.devnull)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "x"
