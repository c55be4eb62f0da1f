"""The native formats as Jinja chat templates, saved with a model so that other programs render the same."""

from __future__ import annotations

_THINKING = (
    "{%- if message.reasoning_content is defined and message.reasoning_content %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}"
)


def _framed(start: str, end: str) -> str:
    return (
        "{%- for message in messages %}"
        f"{{{{- '{start}' + message.role + '\\n' }}}}"
        f"{_THINKING}"
        f"{{{{- message.content + '{end}\\n' }}}}"
        "{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- '{start}assistant\\n' }}}}{{%- endif %}}"
    )


CHATML_JINJA = _framed("<|im_start|>", "<|im_end|>")
MINIMIND_JINJA = _framed("<s>", "</s>")
NANOCHAT_JINJA = (
    "{{- '<|bos|>' }}"
    "{%- set ns = namespace(system='') %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}"
    "{%- if not loop.first %}{{- raise_exception('a system message must come first') }}{%- endif %}"
    "{%- set ns.system = message.content + '\\n\\n' %}"
    "{%- elif message.role == 'user' %}"
    "{{- '<|user_start|>' + ns.system + message.content + '<|user_end|>' }}{%- set ns.system = '' %}"
    "{%- elif message.role == 'assistant' %}"
    f"{{{{- '<|assistant_start|>' }}}}{_THINKING}{{{{- message.content + '<|assistant_end|>' }}}}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant_start|>' }}{%- endif %}"
)
ROLE_TEXT_JINJA = (
    "{{- '<|im_start|>' }}"
    "{%- for message in messages %}"
    "{{- '\\n#' + message.role | upper + ':' }}"
    f"{_THINKING}"
    "{{- message.content }}"
    "{%- if message.role == 'assistant' %}{{- '<|im_end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n#ASSISTANT:' }}{%- endif %}"
)
