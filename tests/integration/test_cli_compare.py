"""The gate on the command line: its numbers, its refusals, its files taken up again, and benchmark tasks."""

import json
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from command_line import exltune, fail, succeed
from scipy import stats

METRICS = ["KL(ref‖quant)", "KL(quant‖ref)", "perplexity", *(f"top-{k}" for k in range(1, 6))]
LOST, REFUSED = 18, 17
WIDE = ("--tolerance", "60%")


@pytest.fixture(scope="module")
def gated(moe_model, quants, data, tmp_path_factory):
    """A gate of 3 bits against 2, far apart in bytes: its file and what it printed as JSON."""
    file = tmp_path_factory.mktemp("compare") / "gate.json"
    arguments = (quants / "3bpw_H6", "--against", quants / "2bpw_H6", "--reference", moe_model, *data, *WIDE)
    return file, succeed("compare", *arguments, "--out", file)


@pytest.fixture
def against(moe_model, data):
    """Arguments of a gate between two quants."""
    return lambda ours, theirs, *more: ("compare", ours, "--against", theirs, "--reference", moe_model, *data, *more)


def test_three_bits_win_over_two(gated, moe_model, quants, data):
    file, found = gated
    assert json.loads(file.read_text()) == found
    assert [metric["name"] for metric in found["metrics"]] == METRICS
    assert found["outcome"] == "win"
    rows = succeed("evaluate", moe_model, quants / "3bpw_H6", quants / "2bpw_H6", *data)["rows"]
    for side, row in zip(("candidate", "baseline"), rows, strict=True):
        mine = found[side]["row"]
        assert {key: value for key, value in mine.items() if key != "path"} == pytest.approx(
            {key: value for key, value in row.items() if key != "path"}
        )
        assert found[side]["source"] == found["source"]
    ours, theirs = (np.array(found[side]["score"]["kl_ref_mix"]) for side in ("candidate", "baseline"))
    test = stats.ttest_rel(theirs, ours)
    assert found["metrics"][0]["p"] == pytest.approx(test.pvalue)
    assert found["bytes_difference"] == pytest.approx(rows[0]["size_bytes"] / rows[1]["size_bytes"] - 1)


def test_every_number_names_its_file_and_command(gated, against):
    file, found = gated
    shown = exltune(*against(f"{file}#baseline", f"{file}#candidate", *WIDE))
    assert shown.code == LOST
    assert shown.stdout.count(str(file)) >= 2
    assert shown.stdout.count(found["source"]["command"]) == 2
    for metric in found["metrics"]:
        assert metric["name"] in shown.stdout
        assert f"{metric['candidate']:.{3 if metric['name'] == 'perplexity' else 4}f}" in shown.stdout
    assert "2bpw_H6: it is worse than 3bpw_H6" in shown.stderr


def test_files_give_what_directories_give(gated, against, quants):
    file, found = gated
    for ours, theirs in ((file, file), (file, quants / "2bpw_H6"), (quants / "3bpw_H6", file)):
        again = succeed(*against(ours, theirs, *WIDE))
        assert again["metrics"] == found["metrics"]


def test_the_same_quant_ties(against, quants):
    found = succeed(*against(quants / "2bpw_H6", quants / "2bpw_H6"))
    assert {metric["outcome"] for metric in found["metrics"]} == {"tie"}
    assert found["bytes_difference"] == 0


def test_other_bytes_are_refused_before_anything_is_scored(against, quants, tmp_path, monkeypatch):
    monkeypatch.setattr("exltune.pipeline.common.session.open_engine", None)
    arguments = against(quants / "3bpw_H6", quants / "2bpw_H6", "--out", tmp_path / "gate.json")
    fail(REFUSED, "bytes do not match", "% where 0.5 % is allowed", "--tolerance", here=tmp_path, arguments=arguments)


def test_half_of_the_bytes_is_no_tolerance(against, quants, tmp_path):
    quant = quants / "2bpw_H6"
    fail(2, "would be 50% of the bytes", "0.5%", here=tmp_path, arguments=against(quant, quant, "--tolerance", "0.5"))
    fail(2, "not a share of bytes", here=tmp_path, arguments=against(quant, quant, "--tolerance", "little"))


def test_other_tokens_are_refused(gated, moe_model, quants, data, tmp_path):
    file, _ = gated
    other = [*data[:-3], "64", *data[-2:]]
    arguments = ("compare", quants / "3bpw_H6", "--against", file, "--reference", moe_model, *other, *WIDE)
    fail(REFUSED, "tokens differ", "24 rows of 32", "12 rows of 32", here=tmp_path, arguments=arguments)


def test_known_or_unknown_text_is_refused(against, quants, data, moe_model, tmp_path):
    quant = shutil.copytree(quants / "2bpw_H6", tmp_path / "quant")
    note = quant / "exltune.json"
    written = json.loads(note.read_text())
    held_out = succeed(*against(quants / "2bpw_H6", quants / "2bpw_H6"))["candidate"]["provenance"]["tokens_sha256"]
    written["provenance"]["tokens_sha256"] = held_out
    note.write_text(json.dumps(written))
    fail(REFUSED, "the ones it was made with", here=tmp_path, arguments=against(quant, quant))
    written["provenance"]["tokens_sha256"] = "0" * 64
    note.write_text(json.dumps(written))
    fail(REFUSED, "other texts", "--trust-data", here=tmp_path, arguments=against(quant, quant))
    note.unlink()
    fail(REFUSED, "without notes", "--trust-data", here=tmp_path, arguments=against(quant, quant))
    assert len(succeed(*against(quant, quant, "--trust-data"))["remarks"]) == 2


def test_files_that_are_no_finished_run_are_refused(gated, against, moe_model, quants, data, tmp_path):
    file, _ = gated
    evaluation, cut, changed = tmp_path / "evaluation.json", tmp_path / "cut.json", tmp_path / "changed.json"
    succeed("evaluate", moe_model, quants / "2bpw_H6", *data, "--out", evaluation)
    short = json.loads(file.read_text())
    short["candidate"]["score"]["nll"].pop()
    cut.write_text(json.dumps(short))
    other = json.loads(file.read_text())
    other["candidate"]["sha256"] = "0" * 64
    changed.write_text(json.dumps(other))
    stranger = json.loads(file.read_text())
    stranger["candidate"]["provenance"]["model_sha256"] = "0" * 64
    (tmp_path / "stranger.json").write_text(json.dumps(stranger))
    empty = json.loads(file.read_text())
    empty["candidate"]["row"]["size_bytes"] = 0
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    theirs = quants / "2bpw_H6"
    fail(REFUSED, "has no bytes", here=tmp_path, arguments=against(theirs, f"{tmp_path / 'empty.json'}#candidate"))
    fail(REFUSED, "means", "2bpw_H6", here=tmp_path, arguments=against(evaluation, theirs))
    fail(REFUSED, "not complete", "11 rows", here=tmp_path, arguments=against(cut, theirs))
    fail(REFUSED, "has changed", here=tmp_path, arguments=against(changed, theirs))
    fail(REFUSED, "another reference", here=tmp_path, arguments=against(tmp_path / "stranger.json", theirs))
    fail(7, "absent", "cannot be read", here=tmp_path, arguments=against(tmp_path / "absent", theirs))
    fail(8, "gate.json", here=tmp_path, arguments=against(file, theirs, "--out", file))


def test_tasks_need_somebody_to_ask(against, quants, tmp_path):
    quant = quants / "2bpw_H6"
    url = "http://127.0.0.1:9/v1"
    fail(2, "nobody to ask", here=tmp_path, arguments=against(quant, quant, "--tasks", "sums"))
    fail(2, "no tasks are named", here=tmp_path, arguments=against(quant, quant, "--candidate-endpoint", url))
    asked = ("tasks", "sums.json", "--tasks", "sums", "--out", tmp_path / "answers.json")
    fail(2, "'sums.json' is not an http address", here=tmp_path, arguments=asked)
    fail(7, "absent.json", here=tmp_path, arguments=against(quant, quant, "--baseline-endpoint", "absent.json"))
    both = ("--candidate-endpoint", url, "--baseline-endpoint", url)
    fail(2, "the same server", here=tmp_path, arguments=against(quant, quant, "--tasks", "sums", *both))


def test_without_the_harness_the_fix_is_named(against, quants, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    arguments = ("tasks", "http://127.0.0.1:9/v1", "--tasks", "sums", "--out", tmp_path / "tasks.json")
    fail(2, "pip install 'exltune[tasks]'", here=tmp_path, arguments=arguments)
    monkeypatch.setattr("exltune.pipeline.common.session.open_engine", None)
    sides = ("--tasks", "sums", "--candidate-endpoint", "http://127.0.0.1:9/v1")
    arguments = against(quants / "2bpw_H6", quants / "2bpw_H6", *sides)
    fail(2, "pip install 'exltune[tasks]'", here=tmp_path, arguments=arguments)


TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "What is {{a}} + {{b}}?"
doc_to_target: "{{c}}"
generation_kwargs: {until: [], do_sample: false}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "^(\\\\d+)$"}, {function: take_first}]
  - name: flexible
    filter: [{function: regex, regex_pattern: "(\\\\d+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@contextmanager
def server(reply):
    """An OpenAI-like chat server: reply(a, b) gives text and finish_reason."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text, reason = reply(*map(int, re.findall(r"\d+", asked["messages"][-1]["content"])))
            message = {"role": "assistant", "content": text}
            answer = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
            content = json.dumps(answer).encode()
            self.send_response(200 if self.path == "/v1/chat/completions" else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/v1"
        listening.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tasks_through_the_harness(gated, against, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'exltune[tasks]'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = [json.dumps({"a": a, "b": a + 1, "c": 2 * a + 1}) for a in range(8)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    (tmp_path / "sums.yaml").write_text(TASK.replace("FILE", str(tmp_path / "sums.jsonl")))
    asked = ("--tasks", "sums", "--include-path", tmp_path, "--max-tokens", "32")
    with server(lambda a, b: (f"It is {a + b}", "stop")) as good:
        succeed("tasks", good, *asked, "--out", tmp_path / "good.json", "--concurrent", "3")
        fail(
            2, "no task other", here=tmp_path, arguments=("tasks", good, "--tasks", "other", "-o", tmp_path / "x.json")
        )
    with server(lambda a, b: (None, "length") if a < 3 else (f"It is {a + b}", "length" if a == 3 else "stop")) as bad:
        file, _ = gated
        sides = ("--candidate-endpoint", tmp_path / "good.json", "--baseline-endpoint", bad)
        found = succeed(*against(file, file, *WIDE, *asked, *sides))
    (task,) = found["tasks"]
    assert (task["documents"], task["candidate_truncated"], task["baseline_truncated"]) == (8, 0, 4)
    assert (task["metric"]["candidate"], task["metric"]["baseline"]) == (1.0, 5 / 8)
    assert found["candidate"]["tasks"]["source"]["file"] == str(tmp_path / "good.json")
    # The harness's own bars stand on standard error, so the message need not begin a line there.
    gone = exltune("tasks", bad, *asked, "--out", tmp_path / "gone.json", "--json")
    assert gone.code == gone.json["error"]["exit_code"] == 16
    assert "does not answer" in gone.json["error"]["message"]
    assert not (tmp_path / "gone.json").exists()
