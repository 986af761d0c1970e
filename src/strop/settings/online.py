"""Settings that the seven online methods share: what is sampled, how it is rewarded, how often it is used."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from strop.settings import earlier
from strop.settings.config import ReferenceConfig
from strop.settings.prerequisites import ABOVE_ZERO, Needs
from strop.settings.schema import OneOrMore, Range, config

VLLM = Needs({"engine": ("vllm",)})
SERVER = {"vllm_mode": ("server",)}
COLOCATED = {"vllm_mode": ("colocate",)}
IN_GENERATION_KWARGS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "stop_strings", "eos_token_id",
)  # fmt: skip
"""What `generation_kwargs` may hold: the settings that the samplers here have, under the names of `generate`."""
AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "do_sample": (True,), "num_beams": (1,), "num_return_sequences": (1,), "use_cache": (True,), "min_length": (0, -1),
    "min_new_tokens": (0, None), "no_repeat_ngram_size": (0,), "length_penalty": (1.0,), "typical_p": (1.0,),
    "pad_token_id": (), "bos_token_id": (),
}  # fmt: skip
"""What it may hold besides: values of what happens anyway, or any where none is named."""


@config
class OnlineConfig(ReferenceConfig):
    """Settings of methods that generate, score and learn."""

    headline: ClassVar[tuple[str, ...]] = ("reward",)
    best_metric: ClassVar[str] = "reward"
    """What the best checkpoint, and a learning rate that waits for progress, go by where nothing else is said: the loss
    of a policy that has not moved is the same whatever it has learned."""

    aliases: ClassVar[dict[str, str]] = {**ReferenceConfig.aliases, **earlier.ONLINE_ALIASES}
    removed: ClassVar[dict[str, str]] = {
        **ReferenceConfig.removed,
        **earlier.ONLINE_REMOVED,
        "generation_kwargs": "It may hold " + ", ".join(IN_GENERATION_KWARGS) + ": what changes the sampled "
        "distribution must change the trainer's too.",
        "vllm_guided_decoding_regex": "A pattern forced on the sampler is not in the trainer's log-probs; reward the "
        "form instead.",
        "judge": "Pass the judge to the trainer.",
        "use_transformers_paged": "Use engine='native', which batches continuously.",
        "use_transformers_continuous_batching": "Use engine='native', which batches continuously.",
        "transformers_continuous_batching_config": "Use engine='native'; max_slots bounds what it decodes at a time.",
        "ds3_gather_for_generation": "Weights are shared or synced by the engine; remove it.",
        "cache_implementation": "The native engine brings its own cache; remove it.",
        "log_completions_hub_repo": "Completions are in samples.jsonl of the run; push the folder.",
        "log_multimodal": "Rows are text; remove it.",
        "vllm_structured_outputs_regex": "A pattern forced on the sampler is not in the trainer's log-probs; reward "
        "the form instead.",
        "vllm_enable_sleep_mode": "Bound vLLM's memory by vllm_gpu_memory_utilization, or run it as a server.",
        "vllm_tensor_parallel_size": "A vLLM in the training process has its one device; start a server with "
        "--tensor-parallel-size.",
        "vllm_group_port": "No process group is opened: a server gets new weights over HTTP; remove it.",
        "stream_prompts": "Only GRPO and RLOO add up their gradient before all completions of a step are there.",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ReferenceConfig.neutral,
        **earlier.ONLINE_NEUTRAL,
        "ds3_gather_for_generation": (True,),
        "log_multimodal": (True,),
        "vllm_tensor_parallel_size": (1,),
        "vllm_group_port": (51216,),
    }
    holders: ClassVar[dict[str, tuple[str, ...]]] = {"generation_kwargs": IN_GENERATION_KWARGS}
    held_anyway: ClassVar[dict[str, tuple[Any, ...]]] = AS_IT_IS
    overlapping: ClassVar[tuple[str, ...]] = ("max_staleness",)
    """Settings by which sampling goes on while the policy learns."""

    unused: ClassVar[dict[str, str]] = {
        **ReferenceConfig.unused,
        "truncation_mode": "Too long prompts are left out, or cut on the left to max_prompt_length; remove it.",
        "precompute_ref_log_probs": "It has no rows to work on: completions are sampled in training; remove it.",
        "precompute_ref_batch_size": "Nothing is precomputed: completions are sampled in training; remove it.",
    }

    needs: ClassVar[dict[str, Needs]] = {
        **ReferenceConfig.needs,
        **dict.fromkeys(("sync_ref_model", "ref_adapter_name"), Needs({"beta": ABOVE_ZERO})),
        "vllm_mode": VLLM,
        "vllm_server_base_url": Needs(SERVER),
        "vllm_server_host": Needs({"vllm_server_base_url": (None,)}, elsewhere=("0.0.0.0",)),
        "vllm_server_port": Needs({"vllm_server_base_url": (None,)}),
        "vllm_server_timeout": VLLM,
        "vllm_sync_dir": VLLM,
        "vllm_gpu_memory_utilization": Needs(COLOCATED, elsewhere=(0.55,)),
        "vllm_max_model_length": Needs(COLOCATED),
        "vllm_model_impl": Needs(COLOCATED, elsewhere=("vllm",)),
        **dict.fromkeys(("ray_workers", "ray_timeout"), Needs({"engine": ("ray",)})),
        "reward_penalty": Needs({"reward_on_error": ("penalize",)}),
        "num_completions_to_print": Needs({"log_completions": (True,), "generate_during_eval": (True,)}),
        "log_unique_prompts": Needs({"log_completions": (True,)}),
    }

    num_generations: Annotated[int, Range(min=1)] = 8
    """Completions sampled for each prompt."""
    num_generations_eval: Annotated[int, Range(min=1)] | None = None
    """Completions per prompt in evaluation. None: as in training."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 512
    """Most tokens of a completion."""
    max_length: Annotated[int, Range(min=2)] | None = None
    """Most tokens of a prompt; longer ones are left out and counted. None: no limit."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 1.0
    """Temperature of sampling, and of the policy that is optimised."""
    top_p: Annotated[float, Range(min=0, max=1, open_min=True)] = 1.0
    """Sample from the most probable tokens that make up this share."""
    top_k: Annotated[int, Range(min=0)] = 0
    """Sample from this many most probable tokens; 0 is all."""
    min_p: Annotated[float, Range(min=0, max=1)] | None = None
    """Sample from tokens with at least this share of the highest probability."""
    repetition_penalty: Annotated[float, Range(min=0, open_min=True)] = 1.0
    """Divide logits of tokens already seen; 1 is off."""
    stop: Annotated[list[str], OneOrMore()] | None = None
    """Texts that end a completion as soon as they appear."""
    stop_token_ids: Annotated[list[int], OneOrMore()] | None = None
    """Ids that end a completion, and belong to it. None: the model's and the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template of conversational prompts."""
    engine: Literal["auto", "native", "transformers", "vllm", "ray"] = "auto"
    """Rollout engine. auto: native where a self-check on the model passes, else transformers. ray: `ray_workers` of
    these, in actors of a Ray cluster."""
    ray_workers: Annotated[int, Range(min=1)] = 2
    """Ray actors, each with a copy of the policy: every training process has so many of its own."""
    ray_timeout: Annotated[float, Range(min=0, open_min=True)] = 1800.0
    """Seconds that Ray actors may take for the weights, or the completions, of a round."""
    max_slots: Annotated[int, Range(min=1)] | None = None
    """Completions decoded at a time. None: chosen by device and memory."""
    max_staleness: Annotated[int, Range(min=0)] = 0
    """Windows that sampling and rewards may be ahead of learning: completions of the next windows are made by another
    process, or a vLLM server, while this one is learned from. What a method corrects for that stands in
    docs/overlap.md. 0: in strict order."""
    use_vllm: bool = False
    """Another way to say engine='vllm'."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """vLLM in the training process, or as a server."""
    vllm_server_base_url: list[str] | None | str = None  # noqa: RUF036  the parser of arguments reads no other order
    """Address of the vLLM server, or of several that share the prompts out. None: made from host and port."""
    vllm_server_host: str = "127.0.0.1"
    """Host of the vLLM server."""
    vllm_server_port: int = 8000
    """Port of the vLLM server."""
    vllm_server_timeout: Annotated[float, Range(min=0, open_min=True)] = 240.0
    """Seconds to wait for the vLLM server to come up, and for each of its answers."""
    vllm_sync_dir: str | None = None
    """Folder for weights on their way to vLLM, which must see it; /dev/shm is fast. None: a temporary one."""
    vllm_gpu_memory_utilization: Annotated[float, Range(min=0, max=1, open_min=True)] = 0.3
    """Share of the device's memory that a colocated vLLM takes."""
    vllm_max_model_length: Annotated[int, Range(min=1)] | None = None
    """Most tokens of prompt + completion that a colocated vLLM makes room for. None: the model's own limit."""
    vllm_model_impl: Literal["auto", "vllm", "transformers"] = "auto"
    """Whose model code a colocated vLLM runs."""

    beta: Annotated[float, Range(min=0)] = 0.0
    """Weight of the KL to the reference. 0: no reference is kept."""
    steps_per_generation: Annotated[int, Range(min=1)] | None = None
    """Micro-batches that one round of sampling serves. None: gradient_accumulation_steps, one optimizer step."""
    generation_batch_size: Annotated[int, Range(min=1)] | None = None
    """Completions of one round of sampling over all processes; another way to give steps_per_generation."""
    num_iterations: Annotated[int, Range(min=1)] = 1
    """Times that each round of completions is learned from."""
    shuffle_dataset: bool = True
    """Take prompts in random order."""
    reward_weights: list[float] | None = None
    """Weight of each reward. None: 1 each."""
    reward_on_error: Literal["raise", "skip", "penalize"] = "raise"
    """When a reward fails on a completion: stop, leave it out, or give it `reward_penalty`."""
    reward_penalty: float = -1.0
    """Reward of a completion whose reward failed, with reward_on_error='penalize'."""
    reward_timeout: Annotated[float, Range(min=0, open_min=True)] | None = 300.0
    """Seconds that a reward function may take for a batch."""
    reward_isolation: bool = False
    """Run reward functions in processes of their own, where a crash or a hang in native code costs a completion and not
    the run. They are copies: what the script or a callback changes afterwards they do not see."""
    missing_eos_penalty: Annotated[float, Range(min=0)] | None = None
    """Taken off the score of completions that did not end by themselves."""
    mask_truncated_completions: bool = False
    """Do not learn from completions that were cut off; their rewards still count in the group."""
    max_tool_calling_iterations: Annotated[int, Range(min=1)] | None = None
    """Most rounds of answers by tools or an environment, after the last of which the model may still speak. None: no
    bound but max_completion_length."""
    tool_timeout: Annotated[float, Range(min=0, open_min=True)] | None = 60.0
    """Seconds that a tool, or a call of an environment, may take. None: no limit."""
    tools_at_once: Annotated[int, Range(min=1)] = 1
    """Completions whose plain tools run at a time, each in a thread, which the tools must bear; those of one completion
    keep their order. 1: all one after the other, in the script's own thread, or in one beside it while the policy
    learns (max_staleness, stream_prompts)."""
    environment_isolation: bool = False
    """A process for each environment, which can be killed when it hangs; a thread can only be left behind."""
    past_turns: Literal["template", "sampled"] = "template"
    """Where the chat template prints past turns of the model otherwise than they were sampled (it leaves thoughts out).
    template: the next turn is learned on the context as the template has it. sampled: the ids stay in the context."""
    advantage_level: Literal["completion", "turn"] = "completion"
    """What has an advantage. turn: each turn of a conversation, compared with the same turn of the prompt's other
    completions by what was still to come; turns are rewarded by tools, steps of environments, `turn_rewards`."""
    log_completions: bool = False
    """Show a table of sampled completions in the terminal at every log."""
    log_unique_prompts: bool = False
    """Show one completion per prompt in that table."""

    def __post_init__(self) -> None:
        self.stop = [self.stop] if isinstance(self.stop, str) else self.stop
        self.stop_token_ids = [self.stop_token_ids] if isinstance(self.stop_token_ids, int) else self.stop_token_ids
        self.top_k = 0 if self.top_k is None else self.top_k
        if self.use_vllm and self.engine == "auto":
            self.engine = "vllm"
        by_default = self.metric_for_best_model is None
        super().__post_init__()
        if by_default and self.metric_for_best_model is not None:  # the parent has taken the loss
            self.go_by(self.best_metric)

    def go_by(self, metric: str) -> None:
        """Take `metric` as the one that the best checkpoint has the best value of."""
        self.metric_for_best_model, self.greater_is_better = metric, not metric.endswith("loss")

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.steps_per_generation is not None and self.generation_batch_size is not None:
            problems.append("steps_per_generation and generation_batch_size say the same in two ways; keep one.")
        if self.use_vllm and self.engine != "vllm":
            problems.append(f"use_vllm=True and engine={self.engine!r} exclude each other; remove one.")
        if self.vllm_server_base_url == []:
            problems.append("vllm_server_base_url=[]: name a server, or leave it out for vllm_server_host.")
        if self.stop and self.engine == "vllm" and self.vllm_mode == "server":
            from strop.rollout.vllm_answers import most_stop_strings

            if len(self.stop) > (most := most_stop_strings()):
                problems.append(
                    f"stop: a vLLM server takes {most} texts, and {len(self.stop)} are given. Take fewer, or "
                    "stop_token_ids; or give server and run a higher VLLM_MAX_STOP_STRINGS."
                )
        if self.overlap:
            problems += [f"{self.overlap}: {why}" for why in self.why_in_order()]
        return problems

    @property
    def overlap(self) -> str:
        """What the settings say of sampling while learning, as `name=value`; empty in strict order."""
        return ", ".join(f"{name}={value}" for name in self.overlapping if (value := getattr(self, name)))

    def why_in_order(self) -> list[str]:
        """What here must sample in strict order."""
        problems = []
        if self.ignore_data_skip:
            problems.append("ignore_data_skip=True moves the rows of the next windows; remove it.")
        if self.engine == "vllm" and self.vllm_mode == "colocate":
            problems.append("a vLLM in the training process shares its device and weights; set vllm_mode='server'.")
        return problems

    def vllm_settings(self) -> dict[str, Any]:
        """What the vllm engine is made with; empty for the other engines."""
        if self.engine != "vllm":
            return {}
        settings = {"mode": self.vllm_mode, "sync_dir": self.vllm_sync_dir, "timeout_s": self.vllm_server_timeout}
        if self.vllm_mode == "server":
            url = self.vllm_server_base_url or f"http://{self.vllm_server_host}:{self.vllm_server_port}"
            return {**settings, "base_url": url, "wait_s": self.vllm_server_timeout}
        llm_args = {
            "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "max_model_len": self.vllm_max_model_length,
            "model_impl": self.vllm_model_impl,
        }
        return {**settings, "llm_args": llm_args}
