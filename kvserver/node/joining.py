"""Joining a running cluster: finding out who one is.

Purpose: a member started with `--initial-cluster-state=existing` does not know its id (it was drawn when the member was added). It asks the
members that `--initial-cluster` names, over HTTP on their peer ports, and finds itself by its peer URLs.

Rules: the answers are data from the network, checked before use; one good answer is enough, the first in the order of the flags. Nothing
is kept: the membership itself comes with the snapshot.

Source: etcd's GetClusterFromRemotePeers and ValidateClusterAndAssignIDs.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvserver.config import ServerConfig
from kvserver.errors import KvError
from kvserver.node.peer_handler import JOIN_PAGE
from kvserver.types import ClusterId, Member, NodeId

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


async def ask_cluster(config: ServerConfig) -> Invitation:
    """Ask the other members who this one is.

    Raises:
        JoinError: none answers, or none knows a member at this one's peer URLs.
    """
    own_urls = tuple(sorted(str(url) for url in config.initial_advertise_peer_urls))
    others = [str(url) for member in config.initial_cluster if member.name != config.name for url in member.peer_urls]
    if not others:
        raise JoinError("--initial-cluster-state=existing: --initial-cluster must name the members that are there already, too")
    failures = []
    for url in others:
        try:
            page = await asyncio.to_thread(_fetch, url)
            return _find_self(page, own_urls)
        except (OSError, ValueError, KeyError, TypeError) as failure:
            failures.append(f"{url}: {failure}")
    raise JoinError("no member of the cluster could be asked: " + "; ".join(failures))


def _fetch(url: str) -> object:
    """The page of the member at `url`. Raises OSError, ValueError."""
    try:
        with urllib.request.urlopen(url + JOIN_PAGE, timeout=ASK_TIMEOUT_S) as answer:
            return json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error


def _find_self(page: object, own_urls: Sequence[str]) -> Invitation:
    """Read the page. Raises JoinError when this member is not in it; ValueError, KeyError, TypeError when it is no such page."""
    if not isinstance(page, dict):
        raise TypeError("the answer is no JSON object")
    members = {}
    for row in page["members"]:
        member = Member(
            id=NodeId(int(row["id"])),
            name=str(row["name"]),
            peer_urls=tuple(sorted(map(str, row["peerURLs"]))),
            client_urls=tuple(map(str, row["clientURLs"])),
            is_learner=bool(row["isLearner"]),
        )
        members[member.id] = member
    own = [member for member in members.values() if member.peer_urls == tuple(own_urls)]
    if not own:
        known = ", ".join(sorted(url for member in members.values() for url in member.peer_urls))
        raise JoinError(
            f"the cluster has no member at {', '.join(own_urls)} (its members are at {known}): "
            "add it first (kvctl member add NAME --peer-urls=...), then start it"
        )
    return Invitation(cluster_id=ClusterId(int(page["cluster_id"])), member_id=own[0].id, members=members)
