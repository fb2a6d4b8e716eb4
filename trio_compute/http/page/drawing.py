"""The state diagram as SVG: where each box stands is set here, which lines there are comes from the table.

Lines are broken at right angles and follow lanes between the boxes. What every live status has, a way to its end, would
bury the rest under lines; these are marked `exit`, and the page shows them for the present status only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape

from msgspec import Struct

from trio_compute.lifecycle import events as ev
from trio_compute.lifecycle.events import Event
from trio_compute.lifecycle.status import Status
from trio_compute.lifecycle.transitions import TABLE

S = Status
Point = tuple[float, float]
Edge = tuple[Status, Status]

COLUMNS = (60, 200, 340)
ROWS = (30, 118, 206, 294, 382)
HALF_WIDTH, HALF_HEIGHT = 52, 27
VIEW = "-14 -2 428 416"
LINE_CHARACTERS = 14
LINE_HEIGHT = 15
CORNER = 7.0
TIP = 6.0

PLACES: Mapping[Status, tuple[int, int]] = {
    S.EMPTY: (1, 0),
    S.CONFIGURATION_PENDING: (0, 1),
    S.INIT: (1, 1),
    S.CONFIGURATION: (0, 2),
    S.RUNNING: (1, 2),
    S.REFRESH_CONFIGURATION: (2, 2),
    S.FAILED: (1, 3),
    S.REFRESH_CONFIGURATION_PENDING: (2, 3),
    S.TERMINATION_PENDING_FAST: (0, 4),
    S.TERMINATED: (1, 4),
    S.TERMINATION_PENDING_IMMEDIATE: (2, 4),
}
# The tone in which the page lights a status, and what it says about it.
MEANINGS: Mapping[Status, tuple[str, str]] = {
    S.EMPTY: ("idle", "It waits in the pool for a spec."),
    S.CONFIGURATION_PENDING: ("busy", "A spec has arrived and waits for its turn."),
    S.INIT: ("busy", "It is starting."),
    S.CONFIGURATION: ("busy", "A new spec is being applied."),
    S.RUNNING: ("good", "Postgres takes connections."),
    S.REFRESH_CONFIGURATION: ("busy", "The configuration is being fetched again."),
    S.FAILED: ("bad", "The last start or change failed."),
    S.REFRESH_CONFIGURATION_PENDING: ("busy", "It will fetch its configuration again."),
    S.TERMINATION_PENDING_FAST: ("ending", "It is ending; for a while it will still tell how that went."),
    S.TERMINATION_PENDING_IMMEDIATE: ("ending", "It is ending."),
    S.TERMINATED: ("ending", "Postgres has ended; this process will follow."),
}
_EXITS = {ev.Signalled, ev.Crashed, ev.TerminateFast, ev.TerminateImmediate}


class Route(Struct, frozen=True):
    """Say how a line goes: the side it leaves and the one it enters, with offsets, and lanes to turn into, x and y."""

    out: tuple[str, float]
    into: tuple[str, float]
    lanes: tuple[float, ...] = ()


def _route(out: str, into: str, *lanes: float, leave: float = 0, enter: float = 0) -> Route:
    return Route((out, leave), (into, enter), lanes)


ROUTES: Mapping[Edge, Route] = {
    (S.EMPTY, S.INIT): _route("bottom", "top"),
    (S.EMPTY, S.CONFIGURATION_PENDING): _route("left", "top"),
    (S.EMPTY, S.FAILED): _route("right", "right", 282, enter=-14),
    (S.EMPTY, S.TERMINATION_PENDING_FAST): _route("left", "left", -6, leave=12),
    (S.EMPTY, S.TERMINATION_PENDING_IMMEDIATE): _route("right", "right", 406, leave=-10),
    (S.CONFIGURATION_PENDING, S.INIT): _route("right", "left", leave=-8, enter=-8),
    (S.CONFIGURATION_PENDING, S.CONFIGURATION): _route("bottom", "top"),
    (S.CONFIGURATION_PENDING, S.FAILED): _route("right", "left", 122, leave=18, enter=-18),
    (S.CONFIGURATION_PENDING, S.TERMINATION_PENDING_IMMEDIATE): _route("top", "right", 74, 402, leave=20),
    (S.INIT, S.RUNNING): _route("bottom", "top"),
    (S.INIT, S.FAILED): _route("right", "right", 259, enter=-14),
    (S.INIT, S.TERMINATION_PENDING_IMMEDIATE): _route("right", "right", 402, leave=12),
    (S.CONFIGURATION, S.RUNNING): _route("right", "left", leave=8, enter=8),
    (S.CONFIGURATION, S.FAILED): _route("bottom", "left", leave=10, enter=-8),
    (S.CONFIGURATION, S.TERMINATION_PENDING_IMMEDIATE): _route("bottom", "top", 338, leave=-16, enter=-16),
    (S.RUNNING, S.CONFIGURATION_PENDING): _route("left", "right", 130, leave=-8, enter=8),
    (S.RUNNING, S.REFRESH_CONFIGURATION_PENDING): _route("right", "left", 275, leave=10, enter=-12),
    (S.RUNNING, S.FAILED): _route("bottom", "top"),
    (S.RUNNING, S.TERMINATION_PENDING_FAST): _route("left", "top", 138, 338, leave=18, enter=16),
    (S.RUNNING, S.TERMINATION_PENDING_IMMEDIATE): _route("right", "top", 267, 338, leave=18, enter=-16),
    (S.FAILED, S.CONFIGURATION_PENDING): _route("left", "left", -6, leave=8),
    (S.FAILED, S.REFRESH_CONFIGURATION_PENDING): _route("right", "left", leave=6, enter=6),
    (S.FAILED, S.TERMINATION_PENDING_FAST): _route("bottom", "top", 338, leave=-20, enter=16),
    (S.FAILED, S.TERMINATION_PENDING_IMMEDIATE): _route("bottom", "top", 338, leave=20, enter=-16),
    (S.REFRESH_CONFIGURATION_PENDING, S.REFRESH_CONFIGURATION): _route("top", "bottom", leave=-12, enter=-12),
    (S.REFRESH_CONFIGURATION_PENDING, S.FAILED): _route("left", "right", leave=16, enter=16),
    (S.REFRESH_CONFIGURATION_PENDING, S.TERMINATION_PENDING_IMMEDIATE): _route("bottom", "top"),
    (S.REFRESH_CONFIGURATION, S.RUNNING): _route("left", "right", leave=-8, enter=-8),
    (S.REFRESH_CONFIGURATION, S.REFRESH_CONFIGURATION_PENDING): _route("bottom", "top", leave=12, enter=12),
    (S.REFRESH_CONFIGURATION, S.FAILED): _route("left", "right", 283, leave=14, enter=-6),
    (S.REFRESH_CONFIGURATION, S.TERMINATION_PENDING_IMMEDIATE): _route("right", "right", 402),
    (S.TERMINATION_PENDING_FAST, S.TERMINATED): _route("right", "left"),
    (S.TERMINATION_PENDING_IMMEDIATE, S.TERMINATED): _route("left", "right"),
}


def edges() -> dict[Edge, list[type[Event]]]:
    """Return the changes of status that the table allows, each with the events that cause it."""
    found: dict[Edge, list[type[Event]]] = defaultdict(list)
    for (source, event), target in TABLE.items():
        if source is not target:
            found[source, target].append(event)
    return dict(found)


def points(edge: Edge) -> list[Point]:
    """Return the corners of the line of an edge, from box to box; one that has no route is a straight line."""
    source, target = edge
    route = ROUTES.get(edge)
    if route is None:
        return [_centre(source), _centre(target)]
    line, goal = [_port(source, *route.out)], _port(target, *route.into)
    horizontal = route.out[0] in {"left", "right"}
    for lane in route.lanes:
        line.append((lane, line[-1][1]) if horizontal else (line[-1][0], lane))
        horizontal = not horizontal
    corner = (goal[0], line[-1][1]) if horizontal else (line[-1][0], goal[1])
    return [*line, goal] if corner in {line[-1], goal} else [*line, corner, goal]


def svg() -> str:
    """Return the whole diagram."""
    lines = "".join(_edge(edge, events) for edge, events in edges().items())
    return (
        f'<svg id="diagram" class="diagram" viewBox="{VIEW}" role="img" aria-labelledby="diagram-title"'
        ' aria-describedby="diagram-text">'
        '<title id="diagram-title">States of a compute</title>'
        '<desc id="diagram-text">The present state is highlighted; its name is said at the top of the page.</desc>'
        f"{lines}{''.join(map(_box, Status))}</svg>"
    )


def _centre(status: Status) -> Point:
    column, row = PLACES[status]
    return (COLUMNS[column], ROWS[row])


def _port(status: Status, side: str, offset: float) -> Point:
    x, y = _centre(status)
    match side:
        case "left":
            return (x - HALF_WIDTH, y + offset)
        case "right":
            return (x + HALF_WIDTH, y + offset)
        case "top":
            return (x + offset, y - HALF_HEIGHT)
        case _:
            return (x + offset, y + HALF_HEIGHT)


def _edge(edge: Edge, events: Sequence[type[Event]]) -> str:
    source, target = edge
    kind = "edge exit" if _EXITS.issuperset(events) else "edge"
    line = points(edge)
    names = ", ".join(event.__name__ for event in events)
    return (
        f'<g class="{kind}" data-from="{source.value}" data-to="{target.value}" data-events="{names}">'
        f"<title>{_words(source)} to {_words(target)}: {names}</title>"
        f'<path class="line" d="{_rounded(line)}"/><path class="tip" d="{_tip(*line[-2:])}"/></g>'
    )


def _box(status: Status) -> str:
    x, y = _centre(status)
    tone, meaning = MEANINGS[status]
    lines = _wrapped(status)
    first = y - (len(lines) - 1) * LINE_HEIGHT / 2
    spans = "".join(f'<tspan x="{x}" y="{first + number * LINE_HEIGHT:g}">{line}</tspan>'
                    for number, line in enumerate(lines))  # fmt: skip
    return (
        f'<g class="state" data-state="{status.value}" data-tone="{tone}"><title>{escape(meaning)}</title>'
        f'<rect x="{x - HALF_WIDTH}" y="{y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}" height="{2 * HALF_HEIGHT}" rx="9"/>'
        f"<text>{spans}</text></g>"
    )


def _words(status: Status) -> str:
    return status.value.replace("_", " ")


def _wrapped(status: Status) -> list[str]:
    lines: list[str] = []
    for word in status.value.split("_"):
        if lines and len(lines[-1]) + 1 + len(word) <= LINE_CHARACTERS:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _rounded(line: Sequence[Point]) -> str:
    parts = [f"M{line[0][0]:g} {line[0][1]:g}"]
    for before, corner, after in zip(line, line[1:], line[2:], strict=False):
        radius = min(CORNER, _distance(before, corner) / 2, _distance(corner, after) / 2)
        enter, leave = _towards(corner, before, radius), _towards(corner, after, radius)
        parts.append(f"L{enter[0]:g} {enter[1]:g}Q{corner[0]:g} {corner[1]:g} {leave[0]:g} {leave[1]:g}")
    end = _towards(line[-1], line[-2], TIP)
    return "".join([*parts, f"L{end[0]:g} {end[1]:g}"])


def _tip(before: Point, end: Point) -> str:
    base = _towards(end, before, TIP + 1)
    sideways = ((end[1] - base[1]) / 2, (base[0] - end[0]) / 2)
    left = (base[0] + sideways[0], base[1] + sideways[1])
    right = (base[0] - sideways[0], base[1] - sideways[1])
    return f"M{end[0]:g} {end[1]:g}L{left[0]:g} {left[1]:g}L{right[0]:g} {right[1]:g}Z"


def _distance(one: Point, other: Point) -> float:
    return float(((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2) ** 0.5)


def _towards(start: Point, goal: Point, length: float) -> Point:
    share = length / (_distance(start, goal) or 1.0)
    return (round(start[0] + (goal[0] - start[0]) * share, 2), round(start[1] + (goal[1] - start[1]) * share, 2))
