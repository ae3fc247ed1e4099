"""Who deleted it? Assigning deletions to the deletes whose outcome nobody heard.

Purpose: a put carries its writer's name in its value; a deletion carries nothing. A revision that only deletes and that nobody was
acknowledged may belong to any unanswered delete that would have done exactly that, and each of those may have happened at most once.
Taking the first that fits can run out of fitting ones although another choice works, so this is a bipartite matching (augmenting paths,
Kuhn 1955).

Cost: revisions times candidates in the worst case; both are few, because they need a delete without an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def unmatched(candidates: Mapping[int, Sequence[int]]) -> list[int]:
    """The revisions that get no operation of their own in a largest matching.

    Args:
        candidates: by revision, the ids of the operations that may have written it.
    """
    holder: dict[int, int] = {}
    return [revision for revision in candidates if not _augment(revision, candidates, holder)]


def _augment(revision: int, candidates: Mapping[int, Sequence[int]], holder: dict[int, int]) -> bool:
    """Find `revision` an operation, moving others along an alternating path if need be. Iterative: paths may be long."""
    came_from: dict[int, int] = {}  # operation -> revision from which the search reached it
    frontier = [revision]
    while frontier:
        current = frontier.pop()
        for operation in candidates[current]:
            if operation in came_from:
                continue
            came_from[operation] = current
            held_by = holder.get(operation)
            if held_by is not None:
                frontier.append(held_by)
                continue
            _flip(operation, revision, came_from, holder)
            return True
    return False


def _flip(free: int, revision: int, came_from: Mapping[int, int], holder: dict[int, int]) -> None:
    """Hand operations on along the path that ends at `free`, back to `revision`."""
    held = {taker: operation for operation, taker in holder.items()}
    operation = free
    while True:
        taker = came_from[operation]
        holder[operation] = taker
        if taker == revision:
            return
        operation = held[taker]
