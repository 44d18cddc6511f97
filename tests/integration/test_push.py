"""`exltune push` against a stand-in of the Hub: branches, the card, what stays behind, resuming, refusals."""

import json
import logging
import shutil
import socket
import time
from pathlib import Path

import pytest
from command_line import contents, exltune, fail, succeed
from published_tunes import BASE_README, make_tune

from tests.standin_hub.server import StandinHub, running

# huggingface_hub 2.4 hands files to httpx2 in a way that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "me/glm"
LEFT_BEHIND = (".exltune.lock", ".search.db", "api_tokens.yml", ".model.partial", "hub_token", "notes.tmp")


@pytest.fixture(scope="module")
def made(tiny_moe, tmp_path_factory):
    """A tune with its card; its quants hold what must not be published."""
    out = make_tune(tiny_moe, tmp_path_factory.mktemp("tunes") / "low")
    for name in LEFT_BEHIND:
        (out / "model" / name).write_text("hf_secret")
    named = ("--base-model", "zai-org/GLM-4.7", "--license", "mit", "--repo-id", REPO, "--gpus", "24GiB")
    succeed("card", out, "--out", out / "README.md", *named)
    return out


@pytest.fixture
def out(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that HF_ENDPOINT leads to, and a token for it.

    Xet is off: its client is a binary that speaks to a storage of its own, so the stand-in takes the Hub's other
    protocol, LFS, which huggingface_hub itself falls back to. Constants are read when the library is imported, hence
    set there and not in the environment.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    # The library's handler keeps the standard error of the test that imported it, which is closed by now.
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [logging.NullHandler()])
    disabled = are_progress_bars_disabled()
    # Waits between retries are the library's; nothing here depends on their length.
    sleep = time.sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: sleep(min(seconds, 0.01)))
    with running(StandinHub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub
    if not disabled:
        enable_progress_bars()


def test_a_branch_for_each_quant_and_the_card_on_main(out, hub):
    done = succeed("push", out, REPO)
    assert done["url"] == f"{hub.url}/{REPO}"
    assert [branch["branch"] for branch in done["branches"]] == ["3bpw_H6", "3.15bpw_H6", "main"]
    assert hub.repos[REPO].branches.keys() == {"main", "3bpw_H6", "3.15bpw_H6"}
    for branch in done["branches"]:
        assert branch["changed"]
        assert branch["commit"] == hub.repos[REPO].branches[branch["branch"]].head
    card = json.loads((out / "card.json").read_text())
    pictures = {"assets/kl_size.png", "assets/bits_3.15bpw_H6.png"}
    page = {".gitattributes", "README.md", "card.json", *card["files"], *pictures}
    assert hub.names(REPO, "main") == page
    quant = {"config.json", "quantization_config.json", "model.safetensors", "tokenizer.json"}
    assert hub.names(REPO, "3bpw_H6") == {".gitattributes", "README.md", *pictures, *quant}
    assert hub.names(REPO, "3.15bpw_H6") == {".gitattributes", "README.md", *pictures, *quant, "recipe.yaml"}
    for branch, folder in (("3bpw_H6", out / "quants" / "3bpw_H6"), ("3.15bpw_H6", out / "model")):
        for name in quant:
            assert hub.text(REPO, branch, name) == (folder / name).read_bytes()


def test_the_card_is_every_branchs_readme(out, hub):
    """exllamav3's conversion copies the base model's README into the quant: it reaches no branch."""
    assert (out / "model" / "README.md").read_text() == BASE_README
    succeed("push", out, REPO)
    for branch in hub.repos[REPO].branches:
        assert hub.text(REPO, branch, "README.md") == (out / "README.md").read_bytes()


def test_no_secret_no_folder_and_no_temporary_file_leaves(tiny_moe, out, hub):
    done = succeed("push", out, REPO)
    left = {action["path"] for action in done["actions"] if action["do"] == "leave out"}
    assert left == {"README.md", *LEFT_BEHIND}
    folder = str(tiny_moe.path.parent).encode()
    assert folder in (out / "model" / "recipe.yaml").read_bytes()
    for branch in hub.repos[REPO].branches:
        assert all(folder not in hub.text(REPO, branch, name) for name in hub.names(REPO, branch))
        assert not hub.names(REPO, branch) & set(LEFT_BEHIND)
        assert all(b"hf_secret" not in hub.text(REPO, branch, name) for name in hub.names(REPO, branch))


def test_again_sends_nothing(out, hub):
    first = succeed("push", out, REPO)
    received, commits = hub.received, hub.calls("POST .*/commit/")
    assert received > 0
    again = succeed("push", out, REPO)
    assert (hub.received, hub.calls("POST .*/commit/")) == (received, commits)
    assert [branch["commit"] for branch in again["branches"]] == [branch["commit"] for branch in first["branches"]]
    assert not any(branch["changed"] for branch in again["branches"])
    assert "there already" in exltune("push", out, REPO).stdout


def test_a_changed_file_alone_is_sent(out, hub):
    succeed("push", out, REPO)
    received = hub.received
    (out / "model" / "tokenizer.json").write_text('{"version": "2.0"}')
    changed = {branch["branch"]: branch["changed"] for branch in succeed("push", out, REPO)["branches"]}
    assert changed == {"3bpw_H6": False, "3.15bpw_H6": True, "main": False}
    assert hub.received == received
    assert hub.text(REPO, "3.15bpw_H6", "tokenizer.json") == b'{"version": "2.0"}'


def test_it_goes_on_after_a_failure(out, hub):
    """The commit fails after its large files have arrived: the next push does not send them again."""
    hub.fail("POST", r"/commit/3\.15bpw_H6", 500, "Internal Error - We're working hard to fix this", times=1)
    refuse(hub, out, 19, "answers 500", "same push again")
    large = {*hub.large}
    received = hub.received
    done = succeed("push", out, REPO)
    assert [branch["changed"] for branch in done["branches"]] == [False, True, True]
    assert hub.received - received == sum(len(hub.large[oid]) for oid in hub.large if oid not in large)
    assert hub.text(REPO, "3.15bpw_H6", "model.safetensors") == (out / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/preupload/", 429),
        ("POST", "/info/lfs/objects/batch", 503),
        ("PUT", "/lfs/", 500),
        ("POST", "/lfs-verify", 503),
    ],
)
def test_passing_failures_are_the_librarys_to_retry(out, hub, method, path, status):
    hub.fail(method, path, status, "come back later", times=2)
    succeed("push", out, REPO, "--branch", "3bpw_H6")
    assert (
        hub.text(REPO, "3bpw_H6", "model.safetensors")
        == (out / "quants" / "3bpw_H6" / "model.safetensors").read_bytes()
    )


def test_large_files_go_in_parts(out, hub):
    succeed("push", out, REPO, "--branch", "3bpw_H6")
    size = (out / "quants" / "3bpw_H6" / "model.safetensors").stat().st_size
    assert hub.calls(r"PUT /lfs/\w+/\d+") >= -(-size // (64 * 1024)) > 2


def test_chosen_branches(out, hub):
    succeed("push", out, REPO, "--branch", "3.15bpw_H6", "--private")
    assert hub.repos[REPO].branches.keys() == {"main", "3.15bpw_H6"}
    assert hub.repos[REPO].private


def test_dry_run_lists_what_a_push_does(out, hub):
    before = contents(out)
    planned = succeed("push", out, REPO, "--dry-run")
    assert hub.requests == []
    assert contents(out) == before
    assert (planned["dry_run"], planned["branches"], planned["url"]) == (True, [], None)
    done = succeed("push", out, REPO)
    assert planned["actions"] == done["actions"]
    uploads = {(a["branch"], a["path"]): a["size_bytes"] for a in planned["actions"] if a["do"] == "upload"}
    there = {
        (branch, name): len(hub.text(REPO, branch, name))
        for branch in hub.repos[REPO].branches
        for name in hub.names(REPO, branch) - {".gitattributes"}
    }
    assert uploads == there
    assert planned["size_bytes"] == sum(there.values())
    created = [a["branch"] for a in planned["actions"] if a["do"] == "create branch"]
    assert created == ["3bpw_H6", "3.15bpw_H6"]


def test_dry_run_for_people(out, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    outcome = exltune("push", out, REPO, "--dry-run")
    assert outcome.code == 0
    for words in ("create repository", "3.15bpw_H6", "model.safetensors", "the card takes its place", "secrets"):
        assert words in outcome.stdout
    assert hub.requests == []


def refuse(hub, out, code, *words, options=(), repo=REPO):
    """A push that must fail with one message; the token stands nowhere in the output."""
    outcome = fail(code, *words, here=out, arguments=("push", out, repo, *options))
    assert "hf_writer" not in outcome.stdout + outcome.stderr
    assert "hf_reader" not in outcome.stdout + outcome.stderr
    return outcome


def test_no_token(out, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    refuse(hub, out, 19, "no token", "HF_TOKEN", "--token-file")
    assert hub.requests == []


@pytest.mark.parametrize("echo", [False, True])
def test_wrong_token(out, hub, monkeypatch, echo):
    """Even a server that repeats the token does not bring it into the output."""
    hub.echo_token = echo
    monkeypatch.setenv("HF_TOKEN", "hf_writer_of_old")
    refuse(hub, out, 19, "does not know this token", "settings/tokens")
    assert hub.repos == {}


def test_no_rights(out, hub, monkeypatch):
    hub.echo_token = True
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    outcome = refuse(hub, out, 19, "may not write there", "***")
    assert "write access" in outcome.stderr
    succeed("card", out, "--out", out / "README.md", *("--base-model", "a/b", "--license", "mit"), "--force",
            *("--repo-id", "others/glm"))  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    refuse(hub, out, 19, "others/glm", "may not write there", repo="others/glm")


def test_token_file(out, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_writer\n")
    outcome = exltune("push", out, REPO, "--token-file", tmp_path / "token")
    assert outcome.code == 0
    assert "hf_writer" not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(("content", "code"), [("", 19), ("hf_writer and more", 19), (None, 15)])
def test_token_file_without_a_token(out, hub, tmp_path, content, code):
    if content is not None:
        (tmp_path / "token").write_text(content)
    refuse(hub, out, code, str(tmp_path / "token"), options=("--token-file", tmp_path / "token"))


def test_quota_of_one_file(out, hub):
    hub.quota = 20_000
    refuse(hub, out, 19, "takes no more bytes", "storage limit reached")


def test_quota_of_the_account(out, hub):
    hub.fail("POST", "/commit/", 403, "Private repository storage limit reached", times=9)
    refuse(hub, out, 19, "takes no more bytes", "storage limit reached")


@pytest.mark.parametrize(("status", "words"), [(409, "changed during the push"), (412, "changed during the push")])
def test_conflicts(out, hub, status, words):
    hub.fail("POST", "/commit/", status, "The branch was updated", times=9)
    refuse(hub, out, 19, words, "same push again")


def test_a_hub_that_stays_down(out, hub):
    hub.fail("POST", "/preupload/", 503, "", times=99)
    refuse(hub, out, 19, "answers 503", "Wait")
    assert hub.calls("POST .*/preupload/") > 2


def test_storage_that_stays_down(out, hub):
    hub.fail("PUT", "/lfs/", 500, "", times=999)
    refuse(hub, out, 19, "answers 500")


def test_no_network(out, hub, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    refuse(hub, out, 19, "cannot be reached", "HF_ENDPOINT")


def test_no_card(out, hub):
    (out / "README.md").unlink()
    refuse(hub, out, 7, "no card", "exltune card")


def test_a_card_for_another_repository(out, hub):
    refuse(hub, out, 7, "name me/glm, not me/other", "exltune card for me/other and with --force", repo="me/other")


def test_a_card_that_lacks_a_quant(out, hub):
    card = json.loads((out / "card.json").read_text())
    card["rows"] = [row for row in card["rows"] if row["branch"] != "3bpw_H6"]
    (out / "card.json").write_text(json.dumps(card))
    refuse(hub, out, 7, "knows no 3bpw_H6")


@pytest.mark.parametrize("what", ["changed", "missing"])
def test_sources_that_are_not_the_cards(out, hub, what):
    path = out / "evaluations" / "3.15bpw_H6.json"
    path.write_text("{}") if what == "changed" else path.unlink()
    refuse(hub, out, 7, what, "--force")
    assert hub.requests == []


def test_a_number_changed_by_hand(out, hub):
    page = out / "README.md"
    text = page.read_text()
    row = next(line for line in text.splitlines() if line.startswith("|") and "±" in line)
    page.write_text(text.replace(row, row.replace("0.", "1.")))
    refuse(hub, out, 7, "±", "changed")
    page.write_text("My own words.\n" + text)
    succeed("push", out, REPO, "--dry-run")


@pytest.mark.parametrize("repo", ["glm", "a/b/c", "me/gl m", "-me/glm"])
def test_names_that_are_none(out, hub, repo):
    outcome = exltune("push", out, "--", repo) if repo.startswith("-") else exltune("push", out, repo)
    assert outcome.code == 2
    assert "OWNER" in outcome.stderr


def test_unknown_branch(out, hub):
    refuse(hub, out, 2, "--branch 9bpw_H6", "3.15bpw_H6", options=("--branch", "9bpw_H6"))


def test_no_output(hub, tmp_path):
    refuse(hub, tmp_path, 10, "no config.json")
