"""The runner of documented procedures: what it runs, what it refuses, and that no command of a page can escape it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvserver.testing.docs_procedure import Procedure, ProcedureError, substitute

PAGE = """# Page

```sh save
kvctl --endpoints=10.0.0.1:2379 version > /backup/out
cat /backup/out
```

```console
$ not run
```

```sh start kv1
kvserver --name=kv1 \\
    --data-dir=/var/lib/kvserver/kv1
```

```sh fails
echo before; false
echo after
```
"""


@pytest.fixture
def make(tmp_path: Path):
    def make(text: str = PAGE, **substitutions: str) -> Procedure:
        page = tmp_path / "page.md"
        page.write_text(text)
        known = {"10.0.0.1:2379": "127.0.0.1:1", "/backup": str(tmp_path), "/var/lib/kvserver": str(tmp_path / "lib")}
        return Procedure.read(page, known | substitutions, tmp_path)

    return make


def test_a_block_runs_with_the_commands_of_this_interpreter(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCTL_NONSENSE", "1")
    result = make().run("save")
    assert "kvctl" in result.stdout.lower()
    assert result.stderr == "", "the test's own environment reached the block"


def test_the_first_failing_command_ends_a_block_and_is_an_error(make) -> None:
    with pytest.raises(ProcedureError, match=r"block fails: exit code 1(?s:.*)before"):
        make().run("fails")
    assert make().run("fails", exit_code=1).stdout == "before\n"


def test_a_server_block_gives_its_flags(make, tmp_path: Path) -> None:
    assert make().server_flags("start kv1") == ["--name=kv1", f"--data-dir={tmp_path}/lib/kv1"]
    with pytest.raises(ProcedureError, match="not one kvserver command"):
        make().server_flags("save")


def test_an_unknown_block_names_those_that_exist(make) -> None:
    with pytest.raises(ProcedureError, match="it has save, start kv1, fails"):
        make().run("restore")


def test_an_address_or_path_of_the_page_that_nothing_stands_for_is_never_run(make, tmp_path: Path) -> None:
    with pytest.raises(ProcedureError, match=r"nothing stands for 10\.0\.0\.2"):
        make("```sh x\ntouch ran; kvctl --endpoints=10.0.0.2:2379 get x\n```\n").run("x")
    procedure = make("```sh x\nrm -rf /backup\n```\n")
    del procedure.substitutions["/backup"]
    with pytest.raises(ProcedureError, match="nothing stands for /backup"):
        procedure.run("x")
    assert not (tmp_path / "ran").exists()


def test_blocks_without_a_name_or_with_anothers_are_refused(make) -> None:
    with pytest.raises(ProcedureError, match="has no name"):
        make("```sh\ntrue\n```\n")
    with pytest.raises(ProcedureError, match="two blocks are named a"):
        make("```sh a\ntrue\n```\n```sh a\ntrue\n```\n")


def test_blocks_that_no_test_uses_are_found(make) -> None:
    procedure = make()
    procedure.run("save")
    with pytest.raises(ProcedureError, match="no step of the test uses fails, start kv1"):
        procedure.check_all_used()
    procedure.text("fails")
    procedure.text("start kv1")
    procedure.check_all_used()


def test_substitution_takes_the_longest_text_and_leaves_replacements_alone() -> None:
    assert substitute("a ab b", {"a": "b", "ab": "a", "b": "c"}) == "b a c"
    assert substitute("a", {}) == "a"
