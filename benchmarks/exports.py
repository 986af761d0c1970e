"""Exports read again by those who they are for: the same greedy text, and log-probs within a bound.

    python -m benchmarks.exports --vllm PYTHON --lm_eval PYTHON     writes benchmarks/results/exports.json
    python -m benchmarks.exports --page                             and the table in docs/exporting.md

vLLM and lm-eval may live in environments of their own: the options name their Pythons; without one, those rows say so.
Every adapter has random weights, so that merging it changes what is written. All is computed in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import RESULTS, versions

RESULT = RESULTS / "exports.json"
PAGE = Path(__file__).parents[1] / "docs" / "exporting.md"
BEGIN, END = "<!-- python -m benchmarks.exports --page -->", "<!-- end -->"
NEW_TOKENS = 24
PROMPTS = ["The capital of France is", "Once upon a time there was", "A list of three fruits:"]
ROWS = [(PROMPTS[0], " Paris, and it lies on a river."), (PROMPTS[1], " a king who had a daughter."),
        (PROMPTS[2], " apples, pears and plums.")]  # fmt: skip
SHAPE = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
LAYERS, ALL = ["q_proj", "v_proj", "down_proj"], ["q_proj", "lm_head"]
BLOCKS = {"f32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0"}
ELSEWHERE = {
    "vLLM": """
import json, sys
from vllm import LLM, SamplingParams
folder, prompts, rows, new = json.loads(sys.stdin.read())
model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4, disable_log_stats=True)
token, logps = model.get_tokenizer(), []
ids = [o.outputs[0].token_ids for o in model.generate(prompts, SamplingParams(temperature=0, max_tokens=new))]
texts = [token.decode(one, skip_special_tokens=True) for one in ids]  # its own text leaves half a character out
for prompt, completion in rows:
    start, whole = len(token(prompt).input_ids), token(prompt + completion).input_ids
    given = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    found = model.generate([{"prompt_token_ids": whole}], given)[0].prompt_logprobs
    logps.append(sum(found[i][whole[i]].logprob for i in range(start, len(whole))))
print("@@" + json.dumps([texts, logps]))
""",
    "lm-eval": """
import json, os, sys, tempfile
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, prompts, rows, new = json.loads(sys.stdin.read())
place = tempfile.mkdtemp()
with open(os.path.join(place, "rows.jsonl"), "w") as file:
    file.writelines(json.dumps({"prompt": p, "completion": c}) + chr(10) for p, c in rows)
task = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": os.path.join(place, "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "{{prompt}}", "doc_to_target": "{{completion}}", "target_delimiter": ""}
kinds = {"given": {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]},
         "written": {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}],
                     "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": new}}}
tasks = [{"task": name, **task, **kind} for name, kind in kinds.items()]
found = simple_evaluate(model="hf", model_args={"pretrained": folder, "dtype": "float32"}, tasks=tasks,
                        batch_size=1, device="cpu", log_samples=True)["samples"]
first = lambda name: [s["resps"][0][0] for s in sorted(found[name], key=lambda s: s["doc_id"])]
print("@@" + json.dumps([first("written"), [float(pair[0]) for pair in first("given")]]))
""",
}
"""Consumer -> a program for its own Python: folder, prompts, rows, new tokens in; texts and log-probs after @@."""


def cases(smollm: str | None) -> dict[str, Callable[[Path], tuple[Any, Any]]]:
    """Name -> what makes a model with an adapter, and its tokenizer; a folder for the base."""
    found: dict[str, Callable[[Path], tuple[Any, Any]]] = {
        "tiny, tied head": lambda folder: tiny(folder, tied=True, targets=LAYERS),
        "tiny, tied head that the adapter changes": lambda folder: tiny(folder, tied=True, targets=ALL),
        "tiny, a head of its own": lambda folder: tiny(folder, tied=False, targets=ALL),
    }
    if smollm is not None:
        found["SmolLM2-135M, tied head"] = lambda folder: adapted(smollm, LAYERS)
    return found


def tiny(folder: Path, *, tied: bool, targets: list[str]) -> tuple[Any, Any]:
    from strop.testing.tiny import tiny_model
    from strop.testing.tokenizers import toy_tokenizer

    tokenizer = toy_tokenizer()
    size = {**SHAPE, "vocab_size": len(tokenizer), "tie_word_embeddings": tied}
    tiny_model("llama", dtype=torch.float32, **size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return adapted(str(folder), targets)


def adapted(base: str, targets: list[str]) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    return model.eval(), AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def texts_of(model: Any, tokenizer: Any) -> list[str]:
    """Greedy text after each prompt."""
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


@torch.no_grad()
def logps_of(model: Any, tokenizer: Any) -> list[float]:
    """Log-probability of each row's completion, in nats."""
    found = []
    for prompt, completion in ROWS:
        start, ids = len(tokenizer(prompt).input_ids), tokenizer(prompt + completion, return_tensors="pt").input_ids
        logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found.append(float(logps[start - 1 :].double().sum()))
    return found


def elsewhere(name: str, python: str | None, folder: Path) -> tuple[list[str], list[float]] | str:
    """What a consumer in an environment of its own makes of a folder, or why that is not known."""
    if python is None:
        return f"not run here: no Python with {name} was named"
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet
    given = json.dumps([str(folder), PROMPTS, ROWS, NEW_TOKENS])
    done = subprocess.run([python, "-c", ELSEWHERE[name]], input=given, capture_output=True, text=True, env=environment)
    if done.returncode:
        return f"fails: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}"
    texts, logps = json.loads(done.stdout.rpartition("@@")[2])
    return texts, logps


def measured(case: str, make: Callable[[Path], tuple[Any, Any]], pythons: dict[str, str | None]) -> Iterator[dict]:
    """A row for each consumer of one model."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from strop.cli import main

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model, tokenizer = make(place / "base")
        run, out = place / "run", place / "merged"
        model.save_pretrained(run)
        tokenizer.save_pretrained(run)
        texts, logps = texts_of(model, tokenizer), logps_of(model, tokenizer)

        def row(consumer: str, found: Any) -> dict[str, Any]:
            if isinstance(found, str):
                return {"case": case, "consumer": consumer, "said": found}
            gap = max(abs(a - b) for a, b in zip(found[1], logps, strict=True))
            same = sum(a == b for a, b in zip(found[0], texts, strict=True))
            return {"case": case, "consumer": consumer, "same": same, "of": len(texts), "gap": gap}

        def here(consumer: str, reader: Any, folder: Path, **options: Any) -> dict:
            read = reader.from_pretrained(folder, dtype=torch.float32, **options).eval()
            own = AutoTokenizer.from_pretrained(folder, **options)
            return row(consumer, (texts_of(read, own), logps_of(read, own)))

        main(["export", str(run), "--to", str(out), "--dtype", "float32", "--gguf", "f32"])
        yield here("transformers, merged", AutoModelForCausalLM, out)
        yield here("PEFT, the adapter's folder", AutoPeftModelForCausalLM, run)
        for name, python in pythons.items():
            yield row(f"{name}, merged", elsewhere(name, python, out))
        for kind, shown in BLOCKS.items():
            folder = out / "gguf"
            if kind != "f32":
                other = place / kind
                main(["export", str(run), "--to", str(other), "--dtype", "float32", "--gguf", kind])
                folder = other / "gguf"
            yield here(f"GGUF {shown}, by transformers", AutoModelForCausalLM, folder, gguf_file=f"model-{kind}.gguf")
        yield {"case": case, "consumer": "Ollama's Modelfile", "said": compared(out / "gguf", tokenizer)}


def compared(folder: Path, tokenizer: Any) -> str:
    """Whether what Ollama would read is the tokenizer's: the template from the GGUF file, stops from the Modelfile."""
    import gguf

    field = gguf.GGUFReader(folder / "model-f32.gguf").fields.get("tokenizer.chat_template")
    template = None if field is None else bytes(field.parts[field.data[0]]).decode()
    stops = [line.split('"')[1] for line in (folder / "Modelfile").read_text().splitlines() if " stop " in line]
    same = (
        "the tokenizer's template" if template == tokenizer.chat_template else "another template than the tokenizer's"
    )
    ends = "its end of text among the stops" if tokenizer.eos_token in stops else "without its end of text"
    return f"{same}, {ends}; Ollama itself was not to be had"


def reward_model() -> dict[str, Any]:
    """A reward model with an adapter and a head of its own, merged, read by transformers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from strop.cli import main
    from strop.model import with_head
    from strop.testing.tiny import tiny_model
    from strop.testing.tokenizers import toy_tokenizer

    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        base = with_head(tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer), **SHAPE), "score")
        base.config.pad_token_id = tokenizer.pad_token_id
        base.save_pretrained(place / "base")
        read = AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=1)
        config = LoraConfig(r=8, target_modules=LAYERS, init_lora_weights=False, task_type="SEQ_CLS")
        model = get_peft_model(read, config).eval()
        model.save_pretrained(place / "run")
        tokenizer.save_pretrained(place / "run")
        main(["export", str(place / "run"), "--to", str(place / "merged"), "--dtype", "float32"])
        again = AutoModelForSequenceClassification.from_pretrained(place / "merged").eval()
        ids = [tokenizer("".join(row), return_tensors="pt").input_ids for row in ROWS]
        with torch.no_grad():
            gap = max(float((model(input_ids=i).logits - again(input_ids=i).logits).abs().max()) for i in ids)
    return {"case": "tiny reward model", "consumer": "transformers, merged", "gap": gap, "unit": "score"}


def page() -> None:
    """The table of the last run, between its marks in docs/exporting.md."""
    record = json.loads(RESULT.read_text())
    lines = ["| model, LoRA merged | read by | same greedy text | largest difference |", "|---|---|---|---|"]
    for row in record["rows"]:
        same = f"{row['same']} of {row['of']}" if "same" in row else ""
        gap = f"{row['gap']:.0e} {row.get('unit', 'nats')}" if "gap" in row else row["said"]
        lines.append(f"| {row['case']} | {row['consumer']} | {same} | {gap} |")
    libraries = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if name != "trl")
    about = f"Made by `python -m benchmarks.exports` with {libraries}, in float32 but for GGUF's weights."
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text("\n".join([before + BEGIN, *lines, "", about, END]) + after)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm", help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--vllm", help="a Python that has vLLM")
    parser.add_argument("--lm_eval", help="a Python that has lm-eval")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    if not options.page:
        pythons = {"vLLM": options.vllm, "lm-eval": options.lm_eval}
        found = [reward_model()]
        for case, make in cases(options.smollm).items():
            found += measured(case, make, pythons)
            RESULT.write_text(json.dumps({"versions": versions(), "rows": found}, indent=1) + "\n")
    page()


if __name__ == "__main__":
    run()
