"""Spec-Bench: its columns from our runs, and its evaluation script's numbers from our answer files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, tiny_lm, trained_like_masks

import space_core
from space_core import Step, Trace
from space_core.__main__ import main
from space_core.model import SpaceModel
from space_core.prompts import read_prompts
from space_core.scores import Run
from space_core.specbench import COLUMNS, files, is_spec_bench, report, standing

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
TASKS = {"mt_bench": "multi-turn", "translation": "translation", "summarization": "summarization", "qa": "QA"}
TASKS |= {"math_reasoning": "math", "rag": "RAG", "overall": "overall"}
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write aloud", "Now shorter"]},
    {"question_id": 101, "category": "reasoning", "turns": ["Why", "And why that", "Really"]},
    {"question_id": 121, "category": "stem", "turns": ["Explain"], "reference": ["?"]},
    {"question_id": 161, "category": "translation", "turns": ["Translate German to English: Haus"]},
    {"question_id": 241, "category": "summarization", "turns": ["Summarize: abcabc"]},
    {"question_id": 321, "category": "qa", "turns": ["Who"]},
    {"question_id": 322, "category": "qa", "turns": ["Where"]},
    {"question_id": 401, "category": "math_reasoning", "turns": ["OnePlusOne"]},
    {"question_id": 481, "category": "rag", "turns": ["Read this and answer"]},
]


pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A letter a token, and a sign that begins each text, as the script's counting assumes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<unk>", *(chr(0x41 + i) for i in range(VOCABULARY - 2))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    lm = tiny_lm("Llama", torch.float32, seed=3)
    lm.get_output_embeddings().weight.data[:2] = 0  # it writes letters only
    path = tmp_path_factory.mktemp("letters") / "letters"
    space_core.save(path, SpaceModel(lm, fast, trained_like_masks(lm)))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def evaluated(path: Path, base: Path, tokenizer, task: str) -> tuple[float, float]:
    """What evaluation/speed.py of Spec-Bench computes from two answer files: speed-up, mean accepted."""

    def chosen(file: Path) -> list[dict]:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        wanted = MT_BENCH if task == "mt_bench" else (task,)
        return [row["choices"][0] for row in rows if task == "overall" or row["category"] in wanted]

    speeds, lengths = [], []
    for choice in chosen(path):
        speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
        lengths += choice["accept_lengths"]
    plain = []
    for choice in chosen(base):
        tokens = sum(len(tokenizer(turn).input_ids) - 1 for turn in choice["turns"])
        plain.append(tokens / sum(choice["wall_time"]))
    ratio = (sum(speeds) / len(speeds)) / (sum(plain) / len(plain))
    return ratio, sum(lengths) / len(lengths)


def test_its_script_finds_in_our_answers_what_we_print(folder, questions, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    typed = ["bench", "--model", str(folder), "--prompts", str(questions), "--methods", "space", "--k", "3"]
    typed += ["--max-new-tokens", "12", "--answers", str(out), "--json", str(tmp_path / "out.json")]
    assert main(typed) == 0
    captured = capsys.readouterr()
    base = tmp_path / "answers-vanilla.jsonl"
    assert str(out) in captured.err and str(base) in captured.err
    (plain, space) = json.loads((tmp_path / "out.json").read_text())["spec_bench"]
    assert plain["accepted"] == 1 and set(plain["speedups"].values()) == {1}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("AB").input_ids) == 3
    for task, column in TASKS.items():
        ratio, _ = evaluated(out, base, tokenizer, task)
        assert space["speedups"][column] == pytest.approx(ratio, abs=1e-5), task
    assert space["accepted"] == pytest.approx(evaluated(out, base, tokenizer, "overall")[1], abs=1e-5)
    head, first, second = captured.out[captured.out.index("Spec-Bench") :].splitlines()[:3]
    assert head.split()[3:9] == list(COLUMNS) and head.endswith("overall")
    assert first.startswith("vanilla") and first.endswith("1.00x") and second.startswith("space")
    assert f"{space['speedups']['RAG']:.2f}x" in second and f"{space['accepted']:.2f}" in second


def test_answers_have_its_form_and_keep_turns(folder, questions, tmp_path):
    out = tmp_path / "a.jsonl"
    typed = ["bench", "--model", str(folder), "--prompts", str(questions), "--methods", "space,generate"]
    typed += ["--max-new-tokens", "8", "--answers", str(out), "--repetitions", "2", "--k", "2,3"]
    assert main(typed) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a-vanilla.jsonl", "a-space-k2.jsonl", "a-space-k3.jsonl", "a-generate.jsonl"}
    rows = {name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in names}
    for name, lines in rows.items():
        assert [row["question_id"] for row in lines] == [q["question_id"] for q in QUESTIONS]
        for row, question in zip(lines, QUESTIONS, strict=True):
            assert set(row) == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
            assert row["category"] == question["category"] and isinstance(row["tstamp"], float)
            assert row["model_id"].startswith("letters-") and row["model_id"].endswith("-float32")
            assert [choice["index"] for choice in row["choices"]] == [0, 1]
            for choice in row["choices"]:
                turns = len(question["turns"])
                columns = ("turns", "decoding_steps", "new_tokens", "wall_time")
                assert set(choice) == {"index", "accept_lengths", *columns}
                assert [len(choice[column]) for column in columns] == [turns] * 4
                assert choice["new_tokens"] == [8] * turns == [len(text) for text in choice["turns"]]
                assert sum(choice["decoding_steps"]) == len(choice["accept_lengths"])
                assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
                assert min(choice["wall_time"]) > 0
        plain = [[c["turns"] for c in row["choices"]] for row in rows["a-vanilla.jsonl"]]
        assert [[c["turns"] for c in row["choices"]] for row in lines] == plain, name
    assert len({row["answer_id"] for lines in rows.values() for row in lines}) == 4 * len(QUESTIONS)


def run(prompt: str, category: str, tokens: int, calls: int, seconds: float, turn=0, repetition=0) -> Run:
    steps = [Step((7,) * (tokens - calls + 1), 0, (), 1, 0.1), *(Step((7,), 0, (), 1, 0.1),) * (calls - 1)]
    return Run(
        prompt, category, turn, repetition, Trace("m", "x", 3, "float32", "cpu", (1,), tuple(steps)), seconds
    )


def test_a_column_is_a_mean_over_questions_not_over_tokens():
    ours = [
        run("1", "writing", 10, 5, 1.0),
        run("1", "writing", 20, 5, 1.0, turn=1),  # one question: 30 tokens in 2 s
        run("2", "math", 5, 5, 1.0),
        run("3", "qa", 8, 2, 1.0),
    ]
    plain = [
        run("1", "writing", 10, 10, 2.0),
        run("1", "writing", 20, 20, 4.0, turn=1),
        run("2", "math", 5, 5, 1.0),
        run("3", "qa", 8, 8, 2.0),
    ]
    line = standing("space", 3, ours, plain)
    assert line.speedups == {
        "multi-turn": 2.0,
        "QA": 2.0,
        "overall": pytest.approx((15 + 5 + 8) / (5 + 5 + 4)),
    }
    assert line.accepted == pytest.approx((10 + 20 + 5 + 8) / (5 + 5 + 5 + 2))
    text = report([line]).splitlines()
    assert text[1].split()[3:] == ["2.00x", "-", "-", "2.00x", "-", "-", f"{line.accepted:.2f}", "2.00x"]


def test_repetitions_are_runs_whose_ratios_are_averaged():
    ours = [run("1", "qa", 8, 2, 1.0), run("1", "qa", 8, 2, 4.0, repetition=1)]
    plain = [run("1", "qa", 8, 8, 2.0), run("1", "qa", 8, 8, 4.0, repetition=1)]
    assert standing("space", 3, ours, plain).speedups["QA"] == pytest.approx((2 + 1) / 2)


def test_categories_are_known_and_files_told_apart():
    assert is_spec_bench(["all", "qa"]) and not is_spec_bench(["all", "code"])
    names = [("vanilla", 0, "float32"), ("space", 5, "float32")]
    assert [p.name for p in files(Path("x/out.jsonl"), names).values()] == ["out-vanilla.jsonl", "out.jsonl"]
    both = [(method, k, dtype) for dtype in ("float32", "bfloat16") for method, k, _ in names]
    assert [p.name for p in files(Path("out"), both).values()] == [
        "out-vanilla-float32.jsonl",
        "out-space-k5-float32.jsonl",
        "out-vanilla-bfloat16.jsonl",
        "out-space-k5-bfloat16.jsonl",
    ]


def test_all_its_questions_are_read_with_their_turns(questions):
    read = read_prompts(questions)
    assert [(p.id, p.category, len(p.turns)) for p in read] == [
        (str(q["question_id"]), q["category"], len(q["turns"])) for q in QUESTIONS
    ]
    assert all(p.chat for p in read)


def test_answers_that_cannot_be_written_are_refused_beforehand(folder, questions, capsys):
    typed = ["bench", "--model", str(folder), "--prompts", str(questions), "--answers", "/nowhere/a.jsonl"]
    assert main(typed) == 2
    assert "cannot write /nowhere/a" in capsys.readouterr().err
