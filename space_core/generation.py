"""SPACE as transformers' own `generate` calls it.

    model.generate(**inputs, custom_generate=space_core.generate, max_new_tokens=64)

transformers prepares what it always does (ids, processors, stopping criteria) and hands it to `generate`
here, which decodes one prompt by `decoders.py` and several by `batches.py`. What it writes is what plain
`generate` writes: logits are read as float32, as there; each judged row goes through the processors with
its own prefix, the text and the drafts before it; and the stopping criteria are asked behind every token,
so that the output ends where plain decoding ends. What depends on more than a row's own prefix, or is
no plain decoding, is refused by its name: the tables below say what is honoured.

This room knows transformers' arguments. It knows nothing of layouts, calls or caches.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation import logits_process as processors
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from space_core import batches, checkpoint
from space_core.decoders import Drafts, _planner, _Run, _space
from space_core.errors import SettingError
from space_core.model import SpaceModel, probe
from space_core.settings import MAX_K, MAX_NEW_TOKENS, Plan, Settings, Verification
from space_core.trace import Stop
from space_core.verify import Verdict, verify_greedy

HONOURED = frozenset(
    """
    inputs input_ids attention_mask generation_config logits_processor stopping_criteria
    prefix_allowed_tokens_fn max_new_tokens max_length min_new_tokens min_length max_time
    eos_token_id pad_token_id bos_token_id do_sample temperature top_k top_p min_p top_h typical_p
    epsilon_cutoff eta_cutoff num_return_sequences repetition_penalty no_repeat_ngram_size
    bad_words_ids sequence_bias suppress_tokens begin_suppress_tokens forced_bos_token_id
    forced_eos_token_id exponential_decay_length_penalty encoder_repetition_penalty
    encoder_no_repeat_ngram_size renormalize_logits remove_invalid_values watermarking_config
    return_dict_in_generate output_scores output_logits
    """.split()  # noqa: SIM905
)
"""Arguments of `model.generate` that do what they do in plain decoding."""

WITHOUT_EFFECT = frozenset(
    """
    early_stopping length_penalty low_memory num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type compile_config disable_compile cache_config
    max_cache_len prefill_chunk_size continuous_batching_config decoder_start_token_id
    transformers_version negative_prompt_ids negative_prompt_attention_mask
    """.split()  # noqa: SIM905
)
"""Those that say how plain decoding computes, or belong to a refused one: they change no output."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), "SPACE has no beam search"),
    "num_beam_groups": ((1,), "SPACE has no beam search"),
    "diversity_penalty": ((0.0,), "SPACE has no beam search"),
    "constraints": ((), "SPACE has no beam search"),
    "force_words_ids": ((), "SPACE has no beam search"),
    "penalty_alpha": ((0, 0.0), "SPACE has no contrastive search"),
    "dola_layers": ((), "SPACE reads the last layer only"),
    "guidance_scale": ((1, 1.0), "guidance asks the model a second time for each token"),
    "assistant_model": ((), "SPACE's drafts come from the model itself"),
    "prompt_lookup_num_tokens": ((), "SPACE looks up drafts by itself, with plan='auto'"),
    "assistant_early_exit": ((), "SPACE's drafts come from its masks"),
    "use_mtp": ((False,), "SPACE's drafts come from its masks"),
    "is_assistant": ((False,), "SPACE drafts for nobody else"),
    "token_healing": ((False,), "it needs a tokenizer, which does not reach a custom_generate callable"),
    "stop_strings": (
        (),
        "it needs a tokenizer, which does not reach a custom_generate callable: pass "
        "stopping_criteria=[StopStringCriteria(tokenizer, …)]",
    ),
    "streamer": ((), "it does not reach a custom_generate callable: pass it as stream_to="),
    "synced_gpus": ((False,), "SPACE runs in one process"),
    "output_attentions": ((False,), "the rows of a call are not those of plain decoding"),
    "output_hidden_states": ((False,), "the rows of a call are not those of plain decoding"),
    "use_cache": ((True,), "SPACE needs the cache"),
    "cache_implementation": (
        ("dynamic", "static", "sliding_window", "hybrid", "hybrid_chunked"),
        "SPACE keeps a cache of its own, on the device and as it is",
    ),
    "past_key_values": ((), "SPACE begins with an empty cache of its own"),
    "inputs_embeds": ((), "SPACE reads token ids"),
}
"""Those that are refused: with any other value than these, and why. None is never refused."""

_OF_THE_ROW = (
    processors.TemperatureLogitsWarper,
    processors.TopKLogitsWarper,
    processors.TopPLogitsWarper,
    processors.MinPLogitsWarper,
    processors.TopHLogitsWarper,
    processors.TypicalLogitsWarper,
    processors.EpsilonLogitsWarper,
    processors.EtaLogitsWarper,
    processors.SuppressTokensLogitsProcessor,
    processors.InfNanRemoveLogitsProcessor,
    processors.LogitNormalization,
)
"""Processors that look at each row of logits alone."""

_OF_THE_PREFIX = (
    processors.MinLengthLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.RepetitionPenaltyLogitsProcessor,
    processors.EncoderRepetitionPenaltyLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor,
    processors.EncoderNoRepeatNGramLogitsProcessor,
    processors.SequenceBiasLogitsProcessor,
    processors.NoBadWordsLogitsProcessor,
    processors.PrefixConstrainedLogitsProcessor,
    processors.ForcedBOSTokenLogitsProcessor,
    processors.ForcedEOSTokenLogitsProcessor,
    processors.ExponentialDecayLengthPenalty,
    processors.SuppressTokensAtBeginLogitsProcessor,
    processors.WatermarkLogitsProcessor,
)
"""Those of transformers that look at the row's own text too. Its other ones keep a state between calls."""

_HOLDER = "_space_decoding"


def generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: GenerationConfig | None = None,
    *,
    space: SpaceModel | str | Path | None = None,
    k: int | None = None,
    plan: Plan | str = Plan.AUTO,
    verification: Verification | str = Verification.BLOCK,
    generator: torch.Generator | None = None,
    stream_to: Any = None,
    streamer: Any = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Any:
    """The decoding loop of `model.generate(…, custom_generate=space_core.generate)`.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs: what
            transformers prepares; not for users.
        space: whose masks draft: a `SpaceModel` of this very model, or a checkpoint's folder or hub id.
            Without it a checkpoint in the folder the model was loaded from serves; else the masks are
            untrained, and SPACE is about as fast as plain decoding.
        k, plan, verification: as in `Settings`; k defaults to the masks' own.
        generator: gives the seeds when sampling; default: torch's global one (`torch.manual_seed`).
        stream_to: a streamer. transformers does not hand `streamer` on to a callable (5.23).
        streamer, synced_gpus: for a transformers that does.

    Returns:
        int64 [n, prompt + new], ids filled up with the pad id behind a sequence that ended before the
        longest; or with return_dict_in_generate a `GenerateDecoderOnlyOutput` of it, with scores and
        logits (float32, one [1, V] for each new token of the one prompt) where these are asked for.

    Raises:
        SettingError: for an argument that SPACE cannot honour, named as its `field`.
        PromptError: for a prompt that is empty or fills the context.
        CheckpointError, UnsupportedModelError: as `load`.
    """
    if generation_config is None:
        raise SettingError(
            "custom_generate",
            "call model.generate(…, custom_generate=space_core.generate), which prepares the rest",
        )
    given: dict[str, Any] = {"synced_gpus": synced_gpus} | _caller(model)
    if streamer is not None:  # handed on after all
        given["streamer"] = None
    _check(generation_config, model_kwargs, given)
    wrapped = wrap(model, space)
    request = _Request(wrapped, generation_config, logits_processor, stopping_criteria)
    prompts = _prompts(input_ids, model_kwargs)
    if len(prompts) > 1:
        request.check_several(stream_to or streamer)
    most = request.most(input_ids.shape[1])
    settings = Settings(
        k=min(wrapped.k, MAX_K) if k is None else k,
        max_new_tokens=min(most, MAX_NEW_TOKENS),
        temperature=1.0 if request.samples else 0.0,
        plan=plan,
        verification=verification,
    )
    runs = [
        _Guided(request, row, padded, prompt, settings, most)
        for row, (padded, prompt) in enumerate(zip(input_ids.tolist(), prompts, strict=True))
    ]
    if request.samples:
        device = "cpu" if generator is None else generator.device
        seeds = torch.randint(2**62, (len(runs),), generator=generator, device=device)
        for run, seed in zip(runs, seeds.tolist(), strict=True):
            run.random.manual_seed(seed)
    if stream_to is not None:  # as transformers does beforehand with the streamers that it knows of
        stream_to.put(input_ids.cpu())
    _decode(runs, settings, stream_to or streamer)
    sequences = _filled(runs, input_ids, generation_config)
    if not generation_config.return_dict_in_generate:
        return sequences
    kept = runs[0].kept
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=tuple(scores for scores, _ in kept) if generation_config.output_scores else None,
        logits=tuple(logits for _, logits in kept) if generation_config.output_logits else None,
    )


def _decode(runs: Sequence[_Guided], settings: Settings, stream: Any) -> None:
    """Run them to their ends; the tokens of a single one go to its streamer one by one."""
    model = runs[0].model
    if len(runs) > 1:
        for _ in batches.decode(runs, batches.planner(model, settings, len(runs))):
            pass
        return
    for step in _space(runs[0], _planner(model, settings)):
        if stream is not None:
            for token in step.emitted:
                stream.put(torch.tensor([token]))
    if stream is not None:
        stream.end()


class _Held:
    """A wrapped model, kept on the transformers model itself, so that both go together.

    A copy or a pickle of the model does not take it along.
    """

    def __init__(self, key: tuple[Any, ...], space: SpaceModel) -> None:
        self.key, self.space = key, space

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def wrap(lm: Any, space: SpaceModel | str | Path | None = None) -> SpaceModel:
    """The `SpaceModel` of a transformers model: made and tried out once, and kept as long as the model.

    Args:
        space: as `generate` takes it.

    Raises:
        SettingError: for a SpaceModel of another model, or a model in training.
        CheckpointError, UnsupportedModelError: as `load`.
    """
    if lm.training:
        raise SettingError("model", "the model is in training, with dropout: call model.eval() first")
    if isinstance(space, SpaceModel):
        if space.lm is not lm:
            raise SettingError("space", "space is a SpaceModel of another model: call space.lm.generate(…)")
        return space
    source = str(space) if space is not None else _own_checkpoint(lm)
    embed = lm.get_input_embeddings().weight
    key = (source, embed.dtype, embed.device)
    held = getattr(lm, _HOLDER, None)
    if held is not None and held.key == key and held.space.lm is lm:
        found: SpaceModel = held.space
        return found
    if source is None:
        made = SpaceModel(lm, name=type(lm).__name__)
        made.pack()
        probe(made)
    else:
        made = checkpoint.attach(lm, source)
    setattr(lm, _HOLDER, _Held(key, made))
    return made


def _own_checkpoint(lm: Any) -> str | None:
    """The local folder that the model came from, if it holds masks."""
    name = getattr(lm, "name_or_path", "") or ""
    return name if name and (Path(name) / checkpoint.MANIFEST).is_file() else None


def _caller(model: Any) -> dict[str, Any]:
    """What was given to `model.generate` and is not handed on to a callable (transformers 5.23).

    Without a look at the caller these would be dropped in silence, and a reader of a
    TextIteratorStreamer wait for ever. Used to refuse them, for nothing else.
    """
    frame = sys._getframe(2)
    code = inspect.unwrap(GenerationMixin.generate).__code__
    if frame.f_code is not code or frame.f_locals.get("self") is not model:
        return {}
    return {name: frame.f_locals.get(name) for name in ("streamer", "assistant_model", "synced_gpus")}


def _check(config: GenerationConfig, model_kwargs: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse by name what SPACE does not honour, of the config, of the model's arguments and of `given`."""
    given = {name: value for name, value in vars(config).items() if not name.startswith("_")} | given
    for name, value in model_kwargs.items():
        if name in ("past_key_values", "cache"):  # transformers makes an empty one, which is not used
            if getattr(value, "_is_user_defined", False) or (value is not None and value.get_seq_length()):
                given["past_key_values"] = value
        elif name not in ("attention_mask", "position_ids", "logits_to_keep"):
            given[name] = value
    for name, value in given.items():
        if name in HONOURED or name in WITHOUT_EFFECT or value is None:
            continue
        neutral, why = REFUSED.get(name, ((), "SPACE does not know it"))
        if not any(type(value) is type(good) and value == good for good in neutral):
            raise SettingError(name, f"{name} is not to be had with SPACE: {why}")


def _prompts(input_ids: Tensor, model_kwargs: dict[str, Any]) -> list[list[int]]:
    """The ids of each prompt, without the padding on its left.

    Raises:
        SettingError: for padding elsewhere, and positions that do not count the tokens from there on.
    """
    attends, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    real = torch.ones_like(input_ids) if attends is None else attends.to(input_ids)
    real = real != 0
    if real.shape != input_ids.shape or bool((real[:, 1:].int() < real[:, :-1].int()).any()):
        raise SettingError(
            "attention_mask", "attention_mask must hide padding on the left: tokenizer.padding_side = 'left'"
        )
    if positions is not None:
        counted = (real.cumsum(-1) - 1).clamp(min=0)
        if positions.shape != real.shape or bool(((positions.to(counted) != counted) & real).any()):
            raise SettingError("position_ids", "position_ids of one's own are not to be had with SPACE")
    return [row[mask].tolist() for row, mask in zip(input_ids, real, strict=True)]


def _filled(runs: Sequence[_Guided], input_ids: Tensor, config: GenerationConfig) -> Tensor:
    """All texts as one tensor, filled up on the right."""
    texts = [run.text for run in runs]
    width = max(map(len, texts))
    pad = getattr(config, "_pad_token_tensor", None)
    if pad is None and any(len(text) < width for text in texts):
        raise SettingError("pad_token_id", "outputs of different lengths need a pad_token_id")
    fill = 0 if pad is None else int(pad)
    rows = [[*text, *[fill] * (width - len(text))] for text in texts]
    return torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)


class _Request:
    """What transformers prepared for all sequences.

    Attributes:
        samples: draws tokens, and takes the likeliest one otherwise.
        eos_ids: ids that end a text.
        keeps_scores: whether each new token's scores and logits are kept.
    """

    def __init__(
        self, model: SpaceModel, config: GenerationConfig, logits_processor: Any, stopping_criteria: Any
    ) -> None:
        self.model = model
        self.samples = bool(config.do_sample)
        self.eos_ids: frozenset[int] = frozenset()
        self.lengths = [] if config.max_length is None else [config.max_length]
        self.criteria: list[Any] = []
        for criterion in stopping_criteria or ():
            # These two are asked so often that they are answered here.
            if type(criterion) is EosTokenCriteria:
                self.eos_ids |= set(criterion.eos_token_id.flatten().tolist())
            elif type(criterion) is MaxLengthCriteria:
                self.lengths.append(criterion.max_length)
            else:
                self.criteria.append(criterion)
        self.processors = list(logits_processor or ())
        for processor in self.processors:
            kind = type(processor)
            if kind.__module__ == processors.__name__ and kind not in (*_OF_THE_ROW, *_OF_THE_PREFIX):
                raise SettingError(
                    "logits_processor",
                    f"{kind.__name__} is not to be had with SPACE: it keeps more than a row's own prefix",
                )
        self.gives_scores = bool(config.return_dict_in_generate and config.output_scores)
        self.gives_logits = bool(config.return_dict_in_generate and config.output_logits)
        self.keeps_scores = self.gives_scores or self.gives_logits

    def check_several(self, stream: Any) -> None:
        """Refuse what is told of one sequence only."""
        for name, given in (
            ("stream_to", stream is not None),
            ("output_scores", self.gives_scores),
            ("output_logits", self.gives_logits),
        ):
            if given:
                raise SettingError(name, f"{name} is for one prompt at a time")

    def most(self, prompt: int) -> int:
        """Most new tokens behind a padded prompt of this length."""
        most = min(self.lengths, default=MAX_NEW_TOKENS + prompt) - prompt
        if most < 1:
            raise SettingError("max_length", f"max_length leaves no room behind a prompt of {prompt} tokens")
        return most

    def own(self, row: int) -> list[Any]:
        """The processors of one sequence: those that keep something for each row of the batch, cut to it."""
        return [_of_row(processor, row) for processor in self.processors]


def _of_row(processor: Any, row: int) -> Any:
    """A processor for a batch of only this row."""
    kind = type(processor)
    if kind is processors.RepetitionPenaltyLogitsProcessor:
        if isinstance(processor.prompt_ignore_length, Tensor):
            return _with(processor, prompt_ignore_length=processor.prompt_ignore_length[row : row + 1])
    elif kind is processors.EncoderRepetitionPenaltyLogitsProcessor:
        return _with(processor, encoder_input_ids=processor.encoder_input_ids[row : row + 1])
    elif kind is processors.EncoderNoRepeatNGramLogitsProcessor:
        return _with(processor, batch_size=1, generated_ngrams=processor.generated_ngrams[row : row + 1])
    elif kind is processors.PrefixConstrainedLogitsProcessor:
        allowed = processor._prefix_allowed_tokens_fn
        return _with(processor, _prefix_allowed_tokens_fn=lambda _, ids: allowed(row, ids))
    return processor


def _with(processor: Any, **changed: Any) -> Any:
    twin = copy.copy(processor)
    vars(twin).update(changed)
    return twin


class _Guided(_Run):
    """One sequence's run under transformers' processors and stopping criteria.

    Attributes:
        text: ids so far as plain `generate` would have them: padding, prompt, what was written.
        kept: scores and logits of each new token, where they are asked for. float32 [1, V] each
    """

    def __init__(
        self,
        request: _Request,
        row: int,
        padded: Sequence[int],
        prompt: Sequence[int],
        settings: Settings,
        most: int,
    ) -> None:
        super().__init__(request.model, prompt, settings, stream=1)
        self.request, self.text = request, list(padded)
        self.eos_ids = request.eos_ids
        room = request.model.context - len(prompt)
        if most > room:
            warnings.warn(
                f"the output ends where the model's context of {request.model.context} tokens does, "
                f"{room} behind the prompt, and not at {most}",
                stacklevel=3,
            )
        self.left = min(most, room)
        self.at_budget = Stop.CONTEXT if room < most else Stop.MAX_NEW_TOKENS
        self.own = request.own(row)
        self.alone = [p for p in self.own if type(p) in _OF_THE_ROW]
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._judged: tuple[Tensor, Tensor] | None = None

    def distribution(self, logits: Tensor) -> Tensor:
        """What drafts are drawn from: the processors that need no prefix, since a draft's is not known yet.

        Any distribution would do, as long as the drafts are judged by it.
        """
        no_text: Any = None
        scores = logits.to(torch.float32, copy=True)
        for processor in self.alone:
            scores = processor(no_text, scores)
        return self._wide(scores).softmax(-1)

    def verify(self, logits: Tensor, drafts: Drafts) -> Verdict:
        self.vocabulary = logits.shape[-1]
        scores = self.scores(logits, drafts.ids)
        if self.request.keeps_scores:
            self._judged = scores, logits.to(torch.float32, copy=True)
        tokens = self.no_tokens if drafts.tokens is None else drafts.tokens
        if self.settings.greedy:
            return verify_greedy(scores.argmax(-1), tokens)
        p = self._wide(scores).softmax(-1)
        q = p[:0] if drafts.q is None else drafts.q
        return self.judge(p, q, tokens, self.uniforms(1 + len(drafts), p))

    def undrafted(self, logits: Tensor) -> int:
        return int(self.verify(logits, Drafts()).own)

    def scores(self, logits: Tensor, drafts: Sequence[int]) -> Tensor:
        """Processed scores of the newest token's row and of each draft's, by its own prefix. [1 + d, V]"""
        scores = logits.to(torch.float32, copy=True)
        prefixes: list[Tensor] = []
        for processor in self.own:
            if type(processor) in _OF_THE_ROW:
                no_text: Any = None
                scores = processor(no_text, scores)
                continue
            if not prefixes:
                ids = torch.tensor([[*self.text, *drafts]], device=logits.device)
                prefixes = [ids[:, : len(self.text) + i] for i in range(1 + len(drafts))]
            each = processors.LogitsProcessorList([processor])
            scores = torch.cat([each(prefix, scores[i : i + 1]) for i, prefix in enumerate(prefixes)])
        return scores

    def emit(self, tokens: list[int]) -> tuple[list[int], Stop | None]:
        """Cut new tokens where plain decoding would stop: asked behind each of them."""
        for index, token in enumerate(tokens[: self.left]):
            self.text.append(token)
            if self._judged is not None:
                scores, logits = self._judged
                self.kept.append((scores[index : index + 1], logits[index : index + 1]))
            self.left -= 1
            self.length += 1
            stop = Stop.EOS if token in self.eos_ids else None
            if self._criteria_say_so():
                stop = stop or Stop.CANCELLED
            if stop or not self.left:
                return tokens[: index + 1], stop or self.at_budget
        return tokens, None

    def _criteria_say_so(self) -> bool:
        criteria = self.request.criteria
        if not criteria:
            return False
        ids = torch.tensor([self.text], device=self.model.device)
        scores = tuple(scores for scores, _ in self.kept) if self.request.gives_scores else None
        # Each is asked every time, as there: it may count.
        return any([bool(torch.as_tensor(criterion(ids, scores)).any()) for criterion in criteria])

    def _wide(self, scores: Tensor) -> Tensor:
        return scores if scores.device.type == "mps" else scores.double()
