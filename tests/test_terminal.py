"""The command line in a terminal: marks, plain text in a pipe, hostile text, one call's grid, exit codes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, tiny_lm, trained_like_masks

import space_core
from space_core import Settings, Step, Stop
from space_core.__main__ import main
from space_core.inspect import layout_of
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.trace import Trace
from space_core.views import frames, sharing, terminal
from space_core.views.lanes import MAIN
from space_core.visible import visible

ROOT = Path(__file__).parent.parent
HOSTILE = [
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x9b31m",
    "\x1bc",
    "\x1b[?1049h",
    "\x1b_G;AAAA\x1b\\",
    "\x08",
    "\r",
    "\x7f",
    "\u202eevil",
    "\x1b[8m",
]
SGR = re.compile(r"\x1b\[[0-9;]*m")
OWN = re.compile(r"\x1b\[(\?25[lh]|[0-9]*A|2K|[0-9]*G)")
"""What rich sends while it paints: hide and show the cursor, up, erase a line."""


pytestmark = pytest.mark.usefixtures("as_before", "unset")


@pytest.fixture
def unset(monkeypatch):
    """Nothing in the environment says what the terminal is."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint that writes what a terminal would obey: most of its tokens are such."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*"abc \n\t", *(f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(6, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    lm = tiny_lm("Llama", torch.float32, seed=5)
    made = SpaceModel(lm, PreTrainedTokenizerFast(tokenizer_object=tokenizer), trained_like_masks(lm))
    path = tmp_path_factory.mktemp("hostile") / "hostile"
    space_core.save(path, made)
    return path


def in_terminal(typed, monkeypatch, width=100, height=30, **environment) -> tuple[int, str]:
    """Exit code and all that came out, of a command whose standard output is a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                shown.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        # rich asks all three standard streams for the size
        patch.setattr("rich.console._STD_STREAMS", (slave,))
        patch.setattr("rich.console._STD_STREAMS_OUTPUT", (slave,), raising=False)
        code = main([str(word) for word in typed])
        out.flush()
        termios.tcdrain(slave)
    reader.join()
    os.close(master)
    return code, b"".join(shown).decode().replace("\r\n", "\n")


def bare(text: str) -> str:
    return SGR.sub("", text)


def race(model, *more) -> list:
    return ["race", "abc", "--model", model, "--max-new-tokens", "40", "--plan", "grid", "--k", "3", *more]


def controls(text: str) -> list[str]:
    return [c for c in text if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160 or ord(c) == 0x202E)]


def test_what_a_terminal_obeys_is_shown():
    text = "".join(map(chr, [*range(0x110), *range(0x2000, 0x2070), 0x61C, 0xD800])) + "".join(HOSTILE)
    assert controls(text) and not controls(visible(text))
    assert visible("\x1b[2J\x9b\x7f\r\n\t\u202e") == "␛[2J\\x9b␡␍\n\t\\u202e"
    plain = "def f(é):\n\t“日本” 👩‍👩‍👧\n"
    assert visible(plain) == plain
    assert visible("\ud800").encode() == b"\\ud800"


def test_a_race_in_a_pipe_is_plain_and_tells_the_verdict(folder, capsys):
    assert main([str(word) for word in race(folder)]) == 0
    captured = capsys.readouterr()
    assert not controls(captured.out) and not captured.err
    assert (
        "SPACE: 40 tokens in" in captured.out
        and "vanilla: 40 tokens in 40 calls, 1.00 per call" in captured.out
    )
    assert "outputs identical" in captured.out.splitlines()[-2] and (
        "faster; outputs identical." in captured.out.splitlines()[-1]
    )
    model = space_core.load(folder)
    ids = [
        t
        for s in space_core.vanilla(model, model.encode("abc"), Settings(max_new_tokens=40))
        for t in s.emitted
    ]
    text = visible(model.decode(ids)).expandtabs(terminal.TAB)
    assert controls(model.decode(ids)), "the model writes nothing hostile: the test would prove nothing"
    assert captured.out.count(text) == 2


def test_json_of_a_race_is_what_the_page_opens(folder, capsys):
    assert main([str(word) for word in race(folder, "--json")]) == 0
    out = capsys.readouterr().out
    data = json.loads(out)
    assert not controls(out)
    again = sharing.read(out)
    assert again.verdict() == data["verdict"] and data["verdict"]["identical"] is True
    assert [trace["method"] for trace in data["traces"]] == list(MAIN)
    assert all(len(trace["output_ids"]) == 40 for trace in data["traces"])


def test_a_terminal_gets_colours_marks_and_nothing_of_the_models(folder, monkeypatch):
    code, text = in_terminal(race(folder), monkeypatch)
    assert code == 0
    final = text[text.rindex("\x1b[?25h") :]  # behind the live picture
    assert "\x1b[4;32m" in final and "\x1b[1;33m" in final
    assert "accepted draft" in final and "outputs identical" in final
    # Without rich's own colours and cursor there is no control character left.
    assert not controls(OWN.sub("", bare(text)).replace("\r", ""))
    assert "␛" in final and "\x1b]" not in text and "\x9b" not in text


def test_no_color_keeps_the_second_cue(folder, monkeypatch):
    code, text = in_terminal(race(folder), monkeypatch, NO_COLOR="1")
    assert code == 0
    codes = {part for found in SGR.findall(text) for part in found[2:-1].split(";")}
    assert {"4", "1"} <= codes and not {c for c in codes if re.fullmatch("[34]\\d|9\\d|10\\d", c)}


def test_a_dumb_terminal_gets_plain_text(folder, monkeypatch):
    code, text = in_terminal(race(folder), monkeypatch, TERM="dumb")
    assert code == 0 and not controls(text) and "outputs identical" in text


@pytest.mark.parametrize("width", [20, 40, 71, 72, 120])
def test_no_line_is_wider_than_the_terminal_nor_the_picture_taller(folder, monkeypatch, width):
    code, text = in_terminal(race(folder), monkeypatch, width=width, height=14)
    final = bare(text[text.rindex("\x1b[?25h") :])
    assert code == 0
    from rich.cells import cell_len

    assert max(cell_len(line) for line in OWN.sub("", final).splitlines()) <= width
    beside = any("SPACE" in line and "vanilla" in line for line in final.splitlines()[:4])
    assert beside is (width >= terminal.SIDE_BY_SIDE)
    ups = [int(n) for n in re.findall(r"\x1b\[(\d+)A", text)]
    assert all(n < 14 for n in ups)


def told(*steps: tuple[str, Step]) -> frames.Race:
    """A race whose pieces are the hostile strings."""

    class Pieces:
        def emitted(self, step):
            return [HOSTILE[token] for token in step.emitted]

        drafts = new_drafts = lambda self, step: []

        def rest(self):
            return "\x1b[2Jrest"

    race = frames.Race(MAIN, None, [1], "p", Settings(), spellers={name: Pieces() for name in MAIN})
    for lane, step in steps:
        race.add(lane, step)
    race.end()
    return race


def test_marks_belong_to_their_tokens():
    race = told(
        ("space", Step((0,), 0, (), 4, 1.0)),
        ("space", Step((1, 2), 1, (1, 3), 9, 1.0)),
        ("space", Step((4, 5), 1, (4,), 9, 1.0, stop=Stop.MAX_NEW_TOKENS)),
        ("vanilla", Step((0,), 0, (), 1, 1.0)),
    )
    lanes = terminal.Lanes(MAIN)
    lanes.add(race.delta())
    (line,) = lanes.texts["space"]
    marked = [(line.plain[span.start : span.end], span.style) for span in line.spans]
    styles = [terminal.STYLES[name] for name in ("own", "accepted", "corrected", "accepted", "bonus")]
    expected = [
        (visible(HOSTILE[n]), style) for n, style in zip((0, 1, 2, 4, 5), styles, strict=True) if style
    ]
    assert [pair for pair in marked if pair[1]] == expected
    cues = [{*style.split()} - {"green", "yellow", "cyan"} for style in terminal.STYLES.values()]
    assert len({frozenset(cue) for cue in cues}) == len(cues), "two origins differ by colour alone"
    assert "␛[2Jrest" in lanes.plain() and not controls(lanes.plain())


def test_a_long_text_shows_its_end_while_it_runs():
    lanes = terminal.Lanes(MAIN)
    race = told(*(("space", Step((n % 3,), 0, (), 1, 0.1)) for n in range(500)))
    lanes.add(race.delta())
    screen = terminal.console(io.StringIO(), width=80)
    screen.print(lanes.live(80, 12))
    drawn = screen.file.getvalue().splitlines()
    assert len(drawn) <= 12 and "500 tokens in 500 calls" in " ".join(drawn)


def mask_of(text: str, rows: int, signs: str = "■·") -> torch.Tensor:
    """The printed mask, its first column (all that stands before) left out."""
    lines = text[text.index("Who sees whom") :].splitlines()[1:]
    cells = [[sign == signs[0] for sign in re.sub(f"[^{signs}]", "", line)] for line in lines if line.strip()]
    assert len(cells) == rows and all(row[0] for row in cells)
    return torch.tensor([row[1:] for row in cells])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_inspect_prints_the_grid_and_the_mask(folder, k, capsys):
    typed = [
        "inspect",
        "abc",
        "--model",
        folder,
        "--plan",
        "grid",
        "--k",
        k,
        "--call",
        "3",
        "--max-new-tokens",
        "30",
    ]
    assert main([str(word) for word in typed]) == 0
    out = capsys.readouterr().out
    assert not controls(out)
    layout = Layout.grid(k)
    assert torch.equal(mask_of(out, layout.rows), layout.sees())
    assert f"Call 3 of SPACE: {layout.rows} rows" in out and out.count("[M]") == layout.n_masks
    table = out[out.index("\nrow ") + 1 :].split("\n\n")[0].splitlines()[1:]
    first = int(re.match(r"0\s+the newest token\s+(\d+)", table[0])[1])
    assert [int(line.split("  ")[0]) for line in table] == list(range(layout.rows))
    model = space_core.load(folder)
    steps = list(space_core.space(model, model.encode("abc"), Settings(k=k, plan="grid", max_new_tokens=30)))
    assert first == 3 + sum(len(step.emitted) for step in steps[:2]) - 1


def test_inspect_reads_what_generate_and_race_saved(folder, tmp_path, capsys):
    common = ["--model", str(folder), "--max-new-tokens", "20", "--plan", "grid", "--k", "3"]
    assert main(["generate", "abc", "--json", *common]) == 0
    (tmp_path / "run.json").write_text(capsys.readouterr().out)
    assert main(["race", "abc", "--json", *common]) == 0
    (tmp_path / "race.json").write_text(capsys.readouterr().out)
    found = []
    for name, more in (("run.json", []), ("race.json", []), ("race.json", ["--lane", "vanilla"])):
        typed = [
            "inspect",
            "--trace",
            str(tmp_path / name),
            "--call",
            "2",
            "--json",
            "--model",
            str(folder),
            *more,
        ]
        assert main(typed) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["format"] == "space-call/1" and found[0] == found[1]
    assert [data["call"]["lane"] for data in found] == ["space", "space", "vanilla"]
    trace = Trace.from_json(json.loads((tmp_path / "run.json").read_text()))
    assert len(found[0]["call"]["guesses"]) == layout_of(trace.steps[1]).rows
    assert len(found[2]["call"]["guesses"]) == 1
    longest = max(range(trace.calls), key=lambda n: len(trace.steps[n].emitted))
    assert main(["inspect", "--trace", str(tmp_path / "run.json"), "--model", str(folder)]) == 0
    assert f"Call {longest + 1} of SPACE" in capsys.readouterr().out


def test_inspect_in_ascii_still_tells_cells_apart(folder, monkeypatch):
    class Ascii(io.StringIO):
        encoding = "ascii"

    out = Ascii()
    monkeypatch.setattr(sys, "stdout", out)
    typed = ["inspect", "abc", "--model", str(folder), "--plan", "grid", "--k", "2", "--call", "2"]
    assert main(typed) == 0
    assert torch.equal(mask_of(out.getvalue(), 9, "#."), Layout.grid(2).sees())


def test_generate_gives_a_pipe_the_text_and_a_terminal_a_picture_of_it(folder, monkeypatch, capsys):
    typed = ["generate", "abc", "--model", str(folder), "--max-new-tokens", "40"]
    assert main(typed) == 0
    raw = capsys.readouterr().out
    code, shown = in_terminal(typed, monkeypatch)
    assert code == 0 and controls(raw) and not controls(shown)
    assert bare(shown).replace("\t", " " * 8).split() == visible(raw).replace("\t", " " * 8).split()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["race"], "--prompt-file"),
        (["race", "a", "--prompt-file", "-"], "one prompt"),
        (["race", ""], "prompt is empty"),
        (["race", "a", "--k", "99"], "k must"),
        (["race", "a", "--model", "/nowhere/\x1b[2J"], "␛[2J"),
        (["race", "a", "--device-map", "attic"], "device_map must be auto"),
        (["race", "a", "--device-map", "{"], "no JSON object"),
        (["race", "a", "--max-memory", "7"], "no JSON object"),
        (["race", "a", "--offload-folder", "x"], "need a device_map"),
        (["race", "a", "--colour"], "unrecognized arguments: --colour"),
        (["inspect", "a", "--call", "0"], "at least 1"),
        (["inspect", "a", "--call", "999"], "there is no call 999"),
        (["inspect", "--trace", "/nowhere.json"], "cannot read the trace"),
        (["inspect", "--trace", "BAD"], "is no JSON"),
        (["inspect", "--trace", "EMPTY"], "format must be"),
        (["inspect", "--trace", "BARE", "--lane", "vanilla"], "no run of vanilla"),
        (["inspect", "a", "--trace", "BAD"], "not both"),
        (["inspect", "\x1b]0;x\x07", "--device", "\x1b[2J"], "not to be had"),
        (["generate", "a", "--device-map", '{"": "attic"}'], "device_map must give"),
        (["sing\x1b[2J"], r"sing\x1b[2J"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, arguments, says, tmp_path, capsys):
    (tmp_path / "BAD").write_text("{")
    (tmp_path / "EMPTY").write_text("{}")
    (tmp_path / "BARE").write_text('{"traces": []}')
    places = {name: str(tmp_path / name) for name in ("BAD", "EMPTY", "BARE")}
    typed = [places.get(word, word) for word in arguments]
    if "--model" not in typed and typed[0] in ("race", "inspect", "generate"):
        typed += ["--model", str(folder)]
    try:
        code = main(typed)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2 and not captured.out
    assert says in captured.err and captured.err.count("\n") == 1 and not controls(captured.err)


def test_ctrl_c_ends_a_race_with_what_there_is_and_130(folder, monkeypatch, capsys):
    real = space_core.vanilla

    def interrupted(model, ids, settings):
        for n, step in enumerate(real(model, ids, settings)):
            if n == 5 and settings.max_new_tokens > 8:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(space_core, "vanilla", interrupted)
    assert main([str(word) for word in race(folder)]) == 130
    out = capsys.readouterr().out
    assert (
        "vanilla: 5 tokens in 5 calls" in out and "Stopped, SPACE at" in out and "vanilla at 5 of 40" in out
    )
    assert main([str(word) for word in race(folder, "--json")]) == 130
    assert json.loads(capsys.readouterr().out)["verdict"]["sentence"].startswith("Stopped")


def test_ctrl_c_while_the_model_loads_is_130_without_a_traceback():
    command = [sys.executable, "-c", "import time, space_core.commands.options as o; import space_core.__main__ as m\n"
               "def slow(options): print('loading', flush=True); time.sleep(60)\n"
               "o.model = slow; raise SystemExit(m.main(['race', 'a']))"]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs these tests in the background of a shell has SIGINT ignored, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "loading\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and not err


@pytest.mark.parametrize(
    ("command", "teaches"),
    [
        ([], ["examples:", "Exit codes", 'race "def fib(n):"', "verifies them in the same call"]),
        (["race"], ["accepted draft", "corrected", "bonus", "NO_COLOR", "--device-map"]),
        (["inspect"], ["attention", "--plan grid", "--call N"]),
        (["generate"], ["standard output", "--temperature", "--json"]),
        (["bench"], ["Spec-Bench", "--answers", "question_id"]),
    ],
)
def test_help_teaches(command, teaches, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    for words in teaches:
        assert words in out


def test_a_device_map_from_the_command_line(folder, capsys):
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0")
    spread = json.dumps({**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"})
    outputs = []
    for more in ([], ["--device-map", spread], ["--device-map", "auto", "--max-memory", '{"cpu": "1GiB"}']):
        typed = ["generate", "abc", "--model", str(folder), "--max-new-tokens", "20", "--dtype", "float64"]
        assert main([*typed, "--json", *more]) == 0
        outputs.append(json.loads(capsys.readouterr().out)["output_ids"])
    assert outputs[0] == outputs[1] == outputs[2]


def test_the_page_is_started_from_here():
    command = [sys.executable, "-m", "space_core", "app", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "Serve the page" in result.stdout
    assert "usage: python -m space_core app" in result.stdout
