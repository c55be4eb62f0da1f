"""Questions with instructions that a program can check: "… Answer in lower case, without a comma." Made here.

After the manner of IFEval, and much smaller: plain questions of the task `general`, one or two instructions each. A
score here is not one of IFEval, which the task `ifeval` reads.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import count

from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.general import general_drafts
from chatwright.tasks.grading import final_text
from chatwright.tasks.instruction_checks import AT_LEAST, LESS, FollowingOptions, Instruction
from chatwright.tasks.task import Draft, Split, question_and_reply, random_for

DEFAULT_COUNTS = {"train": 1_000, "test": 200}
WORDS = ("river", "garden", "window", "letter", "summer", "mountain", "music", "bread", "winter", "paper")
AVOIDED = ("very", "really", "always", "also", "maybe", "often")
MORE = "You can ask me about more things like this."
POINTS = ("I am happy to help.", "You can ask me more.", "There is much more to say.")
PHRASES = ("That is all.", "Is there anything else?", "I hope this helps.", "Have a nice day.")
ALONE = 0.4
"""So many questions have a single instruction, where it isn't one of the first stage: those nearly any text follows."""

Wish = tuple[str, Instruction, str]
"""What is asked, the check, and the answer changed so that it follows."""
Maker = Callable[[str, random.Random], Wish]


class Instructions(GeneratedTask[FollowingOptions]):
    """Graded strictly: the words, the format, the case, the length and the ending that were asked for, and no more."""

    name = "instructions"
    options_type: type[Settings] = FollowingOptions

    def default_count(self, split: Split) -> int | None:
        """1,000 and 200 of the questions without end."""
        return DEFAULT_COUNTS[split]

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Every question with instructions of its own, then every question with others."""
        bases = [(str(base.messages[0].text), str(base.extra["answer"])) for base in general_drafts(split)]
        bases = [(question, answer) for question, answer in bases if _is_plain(question, answer)]
        random_for(self.name, split, seed).shuffle(bases)
        for round_ in count():
            for question, answer in bases:
                yield _draft(question, answer, random_for(self.name, split, seed, question, round_))

    def grade(self, conversation: Conversation, reply: Message) -> bool | float:
        """Whether the final text follows the instructions."""
        return self.options.grade(final_text(reply), conversation.extra["instructions"])


def _is_plain(question: str, answer: str) -> bool:
    """A question and an answer of a few words on one line, which instructions can be added to."""
    return re.fullmatch(r"[A-Z][\w ,.'?!-]*[?.]", question) is not None and (
        re.fullmatch(r"[A-Z][\w ,.';:-]*\.", answer) is not None and len(answer.split()) > 3
    )


def _include(answer: str, rng: random.Random) -> Wish:
    word = rng.choice(WORDS)
    return f"Use the word {word}.", ("keywords:existence", {"keywords": [word]}), f"{answer} My word is {word}."


def _avoid(answer: str, rng: random.Random) -> Wish:
    word = rng.choice([each for each in AVOIDED if each not in answer.lower()])
    return f"Don't use the word {word}.", ("keywords:forbidden_words", {"forbidden_words": [word]}), answer


def _no_comma(answer: str, rng: random.Random) -> Wish:
    asked = rng.choice(("Use no commas.", "Write without commas."))
    return asked, ("punctuation:no_comma", {}), answer.replace(",", "")


def _longer(answer: str, rng: random.Random) -> Wish:
    wanted = _num_words(answer) + rng.randint(2, _num_words(MORE))
    asked = rng.choice(("Use at least {} words.", "Answer with at least {} words.")).format(wanted)
    return asked, ("length_constraints:number_words", {"num_words": wanted, "relation": AT_LEAST}), f"{answer} {MORE}"


def _shorter(answer: str, rng: random.Random) -> Wish:
    wanted = _num_words(answer) + rng.randint(1, 5)
    asked = rng.choice(("Use less than {} words.", "Answer with less than {} words.")).format(wanted)
    return asked, ("length_constraints:number_words", {"num_words": wanted, "relation": LESS}), answer


def _num_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _ending(answer: str, rng: random.Random) -> Wish:
    phrase = rng.choice(PHRASES)
    asked = f'End with exactly this phrase: "{phrase}"'
    return asked, ("startend:end_checker", {"end_phrase": phrase}), f"{answer}{_gap(answer)}{phrase}"


def _gap(answer: str) -> str:
    """What stands before an ending: nothing goes on behind the last of several lines."""
    return "\n\n" if "\n" in answer else " "


def _postscript(answer: str, rng: random.Random) -> Wish:
    asked = "Add a postscript that begins with P.S."
    return asked, ("detectable_content:postscript", {"postscript_marker": "P.S."}), f"{answer}\n\nP.S. Ask me more."


def _bullets(answer: str, rng: random.Random) -> Wish:
    number = rng.randint(2, 4)
    lines = [f"* {each}" for each in (answer, *POINTS[: number - 1])]
    asked = f"Answer in exactly {number} bullet points, each on a line that begins with *."
    return asked, ("detectable_format:number_bullet_lists", {"num_bullets": number}), "\n".join(lines)


def _title(answer: str, rng: random.Random) -> Wish:
    asked = "Put a title between << and >> before your answer."
    return asked, ("detectable_format:title", {}), f"<<Answer>>\n{answer}"


def _quoted(answer: str, rng: random.Random) -> Wish:
    return "Put your whole answer in double quotation marks.", ("startend:quotation", {}), f'"{answer}"'


def _json(answer: str, rng: random.Random) -> Wish:
    asked = rng.choice(("Answer in JSON only.", "Your whole answer must be valid JSON."))
    return asked, ("detectable_format:json_format", {}), json.dumps({"answer": answer})


def _lower(answer: str, rng: random.Random) -> Wish:
    return rng.choice(("Answer in lower case only.", "Use no capital letters.")), ("case:lower", {}), answer.lower()


def _upper(answer: str, rng: random.Random) -> Wish:
    return "Answer in capital letters only.", ("case:upper", {}), answer.upper()


STAGES: tuple[tuple[Maker, ...], ...] = (
    (_shorter, _avoid, _no_comma),
    (_include, _longer),
    (_bullets, _title, _quoted, _json),
    (_ending, _postscript),
    (_lower, _upper),
)
"""Makers by the order in which they change an answer, so that a later one breaks no earlier one's instruction."""
APART: tuple[tuple[set[Maker], set[Maker]], ...] = (
    ({_shorter}, {_include, _longer, _bullets, _title, _json, _ending, _postscript}),
    ({_quoted, _json}, {_ending, _postscript}),
    ({_no_comma}, {_postscript}),
)
"""What can't both be asked for."""


def _fit(first: Maker, second: Maker) -> bool:
    return not any(first in some and second in others for some, others in APART)


def _draft(question: str, answer: str, rng: random.Random) -> Draft:
    stage = rng.randrange(len(STAGES))
    first = rng.choice(STAGES[stage])
    later = [maker for makers in STAGES[stage + 1 :] for maker in makers if _fit(first, maker)]
    alone = stage > 0 and (rng.random() < ALONE or not later)
    makers = [first] if alone else [first, rng.choice(later)]
    wishes, instructions = list[str](), list[Instruction]()
    for make in makers:
        wish, instruction, answer = make(answer, rng)
        wishes.append(wish)
        instructions.append(instruction)
    asked = " ".join([question, *wishes])
    return Draft(question_and_reply(asked, Message.of("assistant", answer)), {"instructions": tuple(instructions)})
