"""Joining a running cluster: finding out who one is, and whether one has been there before.

Purpose: a member started with `--initial-cluster-state=existing` does not know its id (it was drawn when the member was added). It asks the
members that `--initial-cluster` names, over HTTP on their peer ports, and finds itself by its peer URLs. A founding member asks them,
too, whether it is founding for the first time.

Rules
- The answers are data from the network, checked before use. All are asked at once: one that lags knows less than the others, so an id
  that any of them knows as removed is nobody's, and the first answer (in the order of the flags) that knows this member counts.
- A member that has taken part is refused with an empty directory: it has forgotten its votes and what it acknowledged, and could help to
  elect a leader that lacks committed entries. Its client URLs say so: a member publishes them through the log when it first runs (the
  names of founding members are known before that).
- Nothing is kept: the membership itself comes with the snapshot.

Source: etcd's GetClusterFromRemotePeers, ValidateClusterAndAssignIDs and isMemberBootstrapped (which asks founding members only).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvserver.config import ServerConfig, parse_url
from kvserver.errors import KvError
from kvserver.node.peer_handler import JOIN_PAGE
from kvserver.types import ClusterId, Member, NodeId
from wal import guide

ASK_TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1 << 20


class JoinError(KvError):
    """The member can't join; the text says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What the cluster says: its id, this member's id, and everybody in it."""

    cluster_id: ClusterId
    member_id: NodeId
    members: dict[NodeId, Member]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """One member's answer."""

    cluster_id: ClusterId
    members: dict[NodeId, Member]
    removed: frozenset[NodeId]

    def member_at(self, peer_urls: tuple[str, ...], removed: frozenset[NodeId]) -> Member | None:
        """Who is at exactly these (sorted) URLs, if it is not one of `removed`."""
        return next((each for each in self.members.values() if each.peer_urls == peer_urls and each.id not in removed), None)


async def ask_cluster(config: ServerConfig) -> Invitation:
    """Ask the other members who this one is.

    Raises:
        JoinError: none answers, none knows a member at this one's peer URLs, or that member has taken part already.
    """
    own_urls = tuple(sorted(str(url) for url in config.initial_advertise_peer_urls))
    others = _others(config)
    if not others:
        raise JoinError("--initial-cluster-state=existing: --initial-cluster must name the members that are there already, too")
    pages, failures = await _ask_all(others)
    if not pages:
        raise JoinError(
            f"no member of the cluster could be asked: {'; '.join(failures)}: check --initial-cluster, and that those members run, then "
            "start again"
        )
    if len({page.cluster_id for page in pages}) > 1:
        found = ", ".join(f"{each:x}" for each in sorted({page.cluster_id for page in pages}))
        raise JoinError(f"--initial-cluster names members of different clusters ({found}): correct it to those of one")
    removed = frozenset().union(*(page.removed for page in pages))
    for page in pages:
        own = page.member_at(own_urls, removed)
        if own is None:
            continue
        if own.client_urls:
            raise JoinError(
                f"member {own.id:x} at {', '.join(own_urls)} has already taken part in the cluster (as {own.name}), and its data "
                f"directory {config.data_dir} is empty: what it voted and acknowledged is forgotten. Remove it "
                f"(kvctl member remove {own.id:x}) and add it anew ({guide('replace-a-dead-member')})"
            )
        return Invitation(cluster_id=page.cluster_id, member_id=own.id, members=page.members)
    known = ", ".join(sorted({url for page in pages for member in page.members.values() for url in member.peer_urls}))
    raise JoinError(
        f"the cluster has no member at {', '.join(own_urls)} (its members are at {known}): "
        "add it first (kvctl member add NAME --peer-urls=...), then start it"
    )


async def has_taken_part(config: ServerConfig, member: NodeId, cluster: ClusterId) -> bool:
    """Whether a member that answers knows this founding member as one that was there before. False when nobody answers.

    Raises:
        JoinError: a member that answers is of another cluster than the one to be founded: it was restored from a snapshot, say, and this
            member's directory is empty.
    """
    pages, _ = await _ask_all(_others(config))
    if any(member in page.removed or (member in page.members and page.members[member].client_urls) for page in pages):
        return True
    others = sorted({page.cluster_id for page in pages} - {cluster})
    if others:
        raise JoinError(
            f"--initial-cluster means a new, empty cluster {cluster:x}, but a member at its addresses is of cluster {others[0]:x}, which "
            f"was restored from a snapshot or founded with other flags: correct the flags; or, "
            f"only if no member of that cluster has served yet, restore the same snapshot to {config.data_dir}, too "
            f"({guide('backup-and-restore')}); otherwise remove this member "
            "(kvctl member remove), add it anew and start it with --initial-cluster-state=existing"
        )
    return False


async def has_forgotten(urls: Sequence[str], member: NodeId, cluster: ClusterId) -> bool:
    """Whether a member of `cluster` that answers at one of `urls` knows `member`, whose log is empty, as one that was there before. What
    members of other clusters say doesn't count; False when nobody answers."""
    pages, _ = await _ask_all(urls)
    return any(
        page.cluster_id == cluster and (member in page.removed or (member in page.members and bool(page.members[member].client_urls)))
        for page in pages
    )


def _others(config: ServerConfig) -> list[str]:
    return [str(url) for member in config.initial_cluster if member.name != config.name for url in member.peer_urls]


async def _ask_all(urls: Sequence[str]) -> tuple[list[_Page], list[str]]:
    """The answers in the order of `urls`, and why the others gave none."""
    answers = await asyncio.gather(*(_ask(url) for url in urls))
    pages = [answer for answer in answers if isinstance(answer, _Page)]
    return pages, [answer for answer in answers if isinstance(answer, str)]


async def _ask(url: str) -> _Page | str:
    """The answer of the member at `url`, or why there is none."""
    try:
        async with asyncio.timeout(2 * ASK_TIMEOUT_S):  # looking a name up has no timeout of its own
            return _read_page(await asyncio.to_thread(_fetch, url))
    except TimeoutError:
        return f"{url}: no answer in time"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, KvError) as failure:
        return f"{url}: {failure}"


def _fetch(url: str) -> object:
    """The page of the member at `url`. Raises OSError, HTTPException, ValueError."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # peers are dialled, whatever http_proxy says
    try:
        with direct.open(url + JOIN_PAGE, timeout=ASK_TIMEOUT_S) as answer:
            return json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error


def _read_page(page: object) -> _Page:
    """Check the page. Raises ValueError, KeyError, TypeError, KvError when it is no such page."""
    if not isinstance(page, dict):
        raise TypeError("the answer is no JSON object")
    members = {}
    for row in page["members"]:
        member = Member(
            id=NodeId(int(row["id"])),
            name=str(row["name"]),
            peer_urls=tuple(sorted(str(parse_url(str(url))) for url in row["peerURLs"])),
            client_urls=tuple(map(str, row["clientURLs"])),
            is_learner=bool(row["isLearner"]),
        )
        members[member.id] = member
    removed = frozenset(NodeId(int(each)) for each in page["removed"])
    return _Page(cluster_id=ClusterId(int(page["cluster_id"])), members=members, removed=removed)
