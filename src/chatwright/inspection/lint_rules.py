"""Every lint rule by name, with what it says and what to do about it. A new rule is one function and one entry."""

from __future__ import annotations

from chatwright.inspection import lint_rendered, lint_replies, lint_sets, lint_tools
from chatwright.inspection.lint_types import Rule

RULES: dict[str, Rule] = {
    "unrenderable": Rule(
        lint_rendered.unrenderable,
        "error",
        "the template can't render these rows",
        "repair the rows, or choose another template.format or template.tools",
    ),
    "nothing_supervised": Rule(
        lint_rendered.nothing_supervised,
        "error",
        "no token of these rows is trained",
        "remove them, set on_bad_row: skip, or choose another train_on",
    ),
    "no_reply": Rule(
        lint_replies.no_reply,
        "error",
        "these rows hold no reply to train on",
        "filters: [{kind: empty_reply}]",
    ),
    "missing_stop": Rule(
        lint_rendered.missing_stop,
        "error",
        "the model never learns to end these replies",
        "choose a template whose end of turn is a control token (template.format: chatml)",
    ),
    "begin_of_text": Rule(
        lint_rendered.begin_of_text,
        "error",
        "another number of begin-of-text tokens than the template declares",
        "take begin-of-text strings out of the texts; the template writes the token",
    ),
    "labelled_bad": Rule(
        lint_replies.labelled_bad,
        "error",
        "replies that the data calls bad are trained as good ones",
        "filters: [{kind: field, field: label, forbid: [false]}], or train a preference objective",
    ),
    "empty_reply": Rule(
        lint_replies.empty_reply,
        "error",
        "empty replies train the model to say nothing",
        "filters: [{kind: empty_reply}]",
    ),
    "role_order": Rule(
        lint_replies.role_order,
        "warning",
        "roles don't alternate as chat templates expect",
        "join or reorder the messages of these rows, or leave them out with start/stop or a python filter",
    ),
    "placeholders": Rule(
        lint_replies.placeholders,
        "warning",
        "placeholders that nobody filled would be learned as words",
        "transforms: [{kind: fill, values: {name: …}}]",
    ),
    "call_without_output": Rule(
        lint_tools.call_without_output,
        "warning",
        "tool calls that nothing answers: the model learns to invent the output",
        "add the tool's output as a tool message, or leave these rows out",
    ),
    "unknown_tool": Rule(
        lint_tools.unknown_tool,
        "warning",
        "calls of tools that the row doesn't offer",
        "add the tool's definition to the row's tools, or correct its name",
    ),
    "call_arguments": Rule(
        lint_tools.call_arguments,
        "warning",
        "arguments of tool calls don't fit the tool's schema",
        "correct the arguments or the schema, or leave these rows out with a python filter",
    ),
    "other_template": Rule(
        lint_rendered.other_template,
        "warning",
        "the chosen template isn't the one that the model was made with",
        "template.format: auto keeps the model's own; for a base model the choice is free",
    ),
    "forged_headers": Rule(
        lint_rendered.forged_headers,
        "warning",
        "texts imitate this template's plain-text headers, so a message can pass for two",
        "filters: [{kind: pattern, forbid: …}], or a template whose roles are control tokens",
    ),
    "control_text": Rule(
        lint_rendered.control_text,
        "warning",
        "texts hold control-token strings; they are kept as text, and the model learns to spell them",
        "if the rows were rendered before, use the source's messages; filters: [{kind: pattern, forbid: …}]",
    ),
    "repeats_prompt": Rule(
        lint_replies.repeats_prompt,
        "warning",
        "replies begin with the whole prompt",
        "filters: [{kind: repeats_prompt}]",
    ),
    "leaked_system": Rule(
        lint_replies.leaked_system,
        "warning",
        "replies repeat sentences of the system prompt",
        "filters: [{kind: python, function: …}], unless that is what you teach",
    ),
    "mojibake": Rule(
        lint_replies.mojibake,
        "warning",
        "characters from a wrong decoding",
        "transforms: [{kind: fix_mojibake}]; what is lost (�) needs the source's own bytes",
    ),
    "truncated": Rule(
        lint_replies.truncated,
        "warning",
        "replies break off: an open code block, or a last sentence without an end mark",
        "filters: [{kind: truncated}]",
    ),
    "exact_duplicates": Rule(
        lint_sets.exact_duplicates,
        "warning",
        "rows that repeat an earlier one",
        "filters: [{kind: exact_duplicates}]",
    ),
    "near_duplicates": Rule(
        lint_sets.near_duplicates,
        "info",
        f"rows much like an earlier one (estimated similarity {lint_sets.NEAR} or more)",
        f"filters: [{{kind: near_duplicates, threshold: {lint_sets.NEAR}}}]",
    ),
    "language_mix": Rule(
        lint_sets.language_mix,
        "info",
        "rows in a script of their own, or answered in another script than asked (translations are)",
        "filters: [{kind: language, allow: […]}]",
    ),
    "length_outliers": Rule(
        lint_sets.length_outliers,
        "info",
        "rows far longer or shorter than the others",
        "filters: [{kind: length, min: …, max: …}]",
    ),
    "little_supervised": Rule(
        lint_rendered.little_supervised,
        "info",
        "long rows of which hardly a token is trained",
        "transforms: [{kind: keep_last_turns, turns: …}], or train_on: assistant",
    ),
}
