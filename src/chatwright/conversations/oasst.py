"""OpenAssistant's message trees: from a tree to threads, and from the flat table of messages to trees.

A tree is `{"message_tree_id", "prompt": {"text", "role", "replies": […]}}` (`*.trees.jsonl.gz`); the hub's table has
one message a row, tied by `message_id` and `parent_id`. Source: the cards of OpenAssistant/oasst1 and oasst2 (`rank` 0
is the reply that people liked best).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from chatwright.conversations.files import RawRow
from chatwright.conversations.message_formats import make_conversation, read_role
from chatwright.conversations.places import Place, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation, Message, Role

_ROLES: dict[str, Role] = {"prompter": "user", "user": "user", "assistant": "assistant"}
TREE_FIELD = "message_tree_id"
"""The field, and then the key of `extra`, that names the tree a thread belongs to."""
_FLAT_FIELDS = {"message_id", "text", "role"}


def convert_oasst(row: Any, source: str, index: int) -> Conversation:
    """One tree → its best thread: from the first prompt on, always the best-ranked reply, up to the last assistant's.

    Of replies without a rank the first is taken. Deleted messages and all below them are passed over. `extra` gets
    `lang` and what stands beside the tree. All threads of a tree: format `oasst_threads`.

    Raises:
        DataError: naming the row and field that can't be read; also for a row of the flat table (`oasst_flat`).
    """
    place = Place(source, index)
    row = read_mapping(row, place)
    if is_flat_message(row):
        raise place.at("message_id").error(
            "this row is one message of a tree", "name the format oasst_flat, which groups the rows first"
        )
    path = _best_path(read_mapping(row.get("prompt"), place.at("prompt")), place.at("prompt"))
    messages = _read_path(path, place.at("prompt"))
    beside = {**({"lang": path[0]["lang"]} if path[0].get("lang") else {}), **row}
    return make_conversation(messages, beside, place, used=("prompt",))


def is_flat_message(row: Any) -> bool:
    """Whether a row is one message of the flat table."""
    return isinstance(row, Mapping) and row.keys() >= _FLAT_FIELDS and "replies" not in row and "prompt" not in row


def _best_path(node: Mapping[str, Any], place: Place) -> list[Mapping[str, Any]]:
    path = [node]
    while replies := _replies(path[-1], place):
        path.append(min(replies, key=_rank))
    return path


def _replies(node: Mapping[str, Any], place: Place) -> list[Mapping[str, Any]]:
    """The replies to a message that aren't deleted."""
    replies = node.get("replies") or []
    if not isinstance(replies, list | tuple) or not all(isinstance(reply, Mapping) for reply in replies):
        raise place.at("replies").error(f"must be a list of messages, found {shown(replies)}")
    return [reply for reply in replies if not reply.get("deleted")]


def _rank(node: Mapping[str, Any]) -> float:
    rank = node.get("rank")
    return float(rank) if isinstance(rank, int | float) else float("inf")


def _read_path(path: Iterable[Mapping[str, Any]], place: Place) -> list[Message]:
    """The messages of a path up to the last of the assistant; the place names how deep a bad one stands."""
    messages: list[Message] = []
    for depth, node in enumerate(path):
        at = place.at("replies", depth) if depth else place
        role = read_role(node.get("role"), _ROLES, at.at("role"))
        messages.append(Message.of(role, read_text(node.get("text"), at.at("text"))))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise place.error("no assistant answers in this tree", "leave the row out, or set on_bad_row: skip")
    return messages


def group_messages(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Trees from the rows of the flat table, in the order in which their first messages stand there.

    Rows are numbered anew, tree by tree, in each source. Rows that are trees already, or can't be read, pass as they
    are; a message whose parent is missing comes as an error.

    Args:
        rows: all rows of the sources: a tree's messages may stand far apart, so the whole table is held in memory.
    """
    others: list[RawRow] = []
    nodes: dict[str, dict[str, Any]] = {}
    found: list[tuple[RawRow, dict[str, Any]]] = []
    for raw in rows:
        if raw.error or not is_flat_message(raw.value):
            others.append(raw)
            continue
        node = {**raw.value, "replies": []}
        nodes[str(raw.value["message_id"])] = node
        found.append((raw, node))
    trees = _number(_join(found, nodes))
    yield from others
    yield from trees


def _join(found: Sequence[tuple[RawRow, dict[str, Any]]], nodes: Mapping[str, dict[str, Any]]) -> Iterator[RawRow]:
    """Hang each message under its parent; roots and orphans come out, once every reply hangs.

    Messages that reply to each other in a circle hang under none of them: each comes as an error.
    """
    out: list[RawRow] = []
    tops: list[dict[str, Any]] = []
    for raw, node in found:
        parent = node.get("parent_id")
        if parent is None:
            tree = {TREE_FIELD: node.get(TREE_FIELD, node["message_id"]), "prompt": node}
            out.append(raw._replace(value=tree))
            tops.append(node)
        elif str(parent) in nodes:
            nodes[str(parent)]["replies"].append(node)
        else:
            at = Place(raw.source, raw.number, ("parent_id",))
            out.append(raw._replace(error=at.error(f"the message it replies to isn't in the source: {shown(parent)}")))
            tops.append(node)
    hanging = _ids_below(tops)
    for raw, node in found:
        if id(node) not in hanging:
            at = Place(raw.source, raw.number, ("parent_id",))
            out.append(raw._replace(error=at.error("its replies lead back to it in a circle, to no first message")))
    yield from out


def _ids_below(tops: list[dict[str, Any]]) -> set[int]:
    """The `id` of every message of the trees under these, themselves included."""
    waiting, seen = list(tops), set()
    while waiting:
        node = waiting.pop()
        seen.add(id(node))
        waiting += node["replies"]
    return seen


def split_threads(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """One row a thread: each tree cut into its paths from the first prompt to an assistant's last reply.

    Flat rows are grouped first. Paths are cut after the last reply of the assistant, and those that are then the same
    come once. Threads of one tree share their beginning, which a training run then sees several times.
    """
    yield from _number(thread for raw in group_messages(rows) for thread in _threads(raw))


def _threads(raw: RawRow) -> Iterator[RawRow]:
    root = raw.value.get("prompt") if isinstance(raw.value, Mapping) else None
    if raw.error or not isinstance(root, Mapping):
        yield raw
        return
    place = Place(raw.source, raw.number, ("prompt",))
    tree = {TREE_FIELD: root.get("message_id", f"{raw.source} row {raw.number}"), **raw.value}
    seen: set[tuple[int, ...]] = set()
    for path in _all_paths(root, place):
        while len(path) > 1 and path[-1].get("role") != "assistant":
            path.pop()
        if (key := tuple(map(id, path))) not in seen:
            seen.add(key)
            yield raw._replace(value={**tree, "prompt": _chain(path)})


def _all_paths(root: Mapping[str, Any], place: Place) -> Iterator[list[Mapping[str, Any]]]:
    waiting = [[root]]
    while waiting:
        path = waiting.pop()
        replies = sorted(_replies(path[-1], place), key=_rank)
        if not replies:
            yield path
        waiting += [[*path, reply] for reply in reversed(replies)]


def _chain(path: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A tree of this one path."""
    node: dict[str, Any] = {}
    for message in reversed(path):
        node = {**message, "replies": [node] if node else []}
    return node


def _number(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """The rows, numbered from 0 in each source; one with an error keeps its number, which the error names too."""
    numbers: dict[str, int] = {}
    for raw in rows:
        number = numbers.get(raw.source, 0)
        if raw.error:
            yield raw
            continue
        numbers[raw.source] = number + 1
        yield raw._replace(number=number)
