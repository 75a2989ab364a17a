"""SPACE for this checkpoint: `model.generate(…, custom_generate="owner/model", trust_remote_code=True)`.

Needs the library `space_core` (distribution `space-decoding`), installed from its source repository.
The masks are those of the repository that the model was loaded from, or of `space="owner/model"`.
Unlike a callable, this function is given `streamer`, `tokenizer` and `stop_strings`, and honours them.
"""

from __future__ import annotations

from typing import Any

LOADING = ("revision", "token", "cache_dir", "force_download", "proxies", "local_files_only", "repo_type")
"""Arguments that say how this file was fetched."""


def generate(
    inputs: Any = None,
    generation_config: Any = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    *,
    model: Any,
    streamer: Any = None,
    tokenizer: Any = None,
    stop_strings: Any = None,
    space: Any = None,
    custom_generate: Any = None,
    **kwargs: Any,
) -> Any:
    """Arguments as those of `model.generate`, and `space`, `k`, `plan`, `verification`, `generator`."""
    # The class's own: with trust_remote_code, loading puts this function in the instance's place.
    own = type(model).generate
    if custom_generate is not None:
        given = {"streamer": streamer, "tokenizer": tokenizer, "stop_strings": stop_strings, "space": space}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        return own(
            model,
            inputs,
            generation_config,
            logits_processor,
            stopping_criteria,
            custom_generate=custom_generate,
            **kwargs,
        )
    try:
        import space_core
    except ImportError:
        raise ImportError(
            "this model decodes with the library space_core (distribution space-decoding): install it from "
            "its source repository, or leave custom_generate out"
        ) from None
    for name in LOADING:
        kwargs.pop(name, None)
    if stop_strings is None and generation_config is not None:
        stop_strings = generation_config.stop_strings
    if stop_strings is not None:
        from transformers import StoppingCriteriaList
        from transformers.generation.stopping_criteria import StopStringCriteria

        if tokenizer is None:
            raise ValueError("stop_strings needs tokenizer=")
        criterion = StopStringCriteria(tokenizer, stop_strings)
        stopping_criteria = StoppingCriteriaList([*(stopping_criteria or ()), criterion])
    return own(
        model,
        inputs,
        generation_config,
        logits_processor,
        stopping_criteria,
        custom_generate=space_core.generate,
        space=space or model.name_or_path,
        stream_to=streamer,
        **kwargs,
    )
