"""What is known of the instances of one service in Consul, and what an answer makes of it.

::

                listed, usable
    (absent) ─────────────────► LIVE ──── gone, and Consul remembers it; or judged unusable ────► (absent)
                                │  │
           Consul forgot it,    │  │ missing from a streamed answer
           hides it, or has not │  ▼
           judged it again yet  │ DOUBTED ─── missing from the plain answer, too ───────────────► (absent)
                                ▼
                              HELD ── its time is over; judged unusable; its id or its address
                                      is usable under another key ──────────────────────────────► (absent)

From DOUBTED and HELD an instance that is listed and usable is LIVE again. A doubted one is held for the same reasons.

**HELD.** What Consul forgot is not gone. A registry that was restarted empty, or restored from an older
snapshot, says that instances are gone that still serve. So removals are held for ``hold_s`` if they come

* with an index that went backwards, or
* after an interruption, when nothing that was known has the same origin (node id, creation
  index) as before: the new index may by then have overtaken the old one; or
* after an interruption, when the instance is listed, but its check has not run yet: an agent
  that kept its registrations over a restart begins all checks as critical. (Such a check has no output; that is how a
  registration begins, and no judgement.)

The hold counts only the time between good answers: a Consul that comes back empty, says so and
is gone again has not given anybody the time to register. When the hold is over, Consul is asked
once more at once, and what it lists then is kept: the last answer may be old, if the client
itself was stopped. Additions apply at once; the breakers guard against a held instance that is
really gone.

What a token may not read is not gone either. Consul filters it out, and says so in a header;
what the last complete answer listed is held until there is a complete one again.

**DOUBTED.** Consul's streaming backend, which answers the questions that wait, filters without saying so. So what is
missing from such an answer is still used, until the plain question that follows at once has its answer.

Service ids are unique on one node only. The instance that has an id already keeps it, so that it
keeps its statistics; one that joins with the same id at another address is called ``id@node``.
Of two ids at one address the first counts: the server behind them gets the share of one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from math import inf

from lb.core.consul_health import RIGHTS, Answer, Instance
from lb.core.endpoint import Endpoint

_Key = tuple[str, str]


class Known:
    """The instances of one service. ``hold_s``: how long those are kept that Consul forgot, in seconds."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._listed: tuple[Instance, ...] = ()
        self._origins: set[tuple[str, int]] = set()
        """Of all that was listed, or is doubted."""
        self._live: dict[_Key, Endpoint] = {}
        self._held: dict[_Key, tuple[Endpoint, float]] = {}
        """With the seconds that each is still held for; ``inf``: until an answer is complete."""
        self._doubted: dict[_Key, Endpoint] = {}
        self._filtered = False
        """Whether the last plain answer left out what the token may not read."""
        self._complete: set[_Key] = set()
        """What was listed while nothing was filtered."""
        self._at_node: dict[_Key, str] = {}
        """The names of those whose id another instance has, by Consul's id and the address."""

    # ---- what it says ----

    @property
    def endpoints(self) -> list[Endpoint]:
        """All that are to be used: the live ones first."""
        return [*self._live.values(), *self._doubted.values(), *(endpoint for endpoint, _ in self._held.values())]

    @property
    def shortest_hold_s(self) -> float:
        """In how many seconds a hold is over; ``inf`` when none is."""
        return min((left_s for _, left_s in self._held.values()), default=inf)

    @property
    def wants_proof(self) -> bool:
        """Whether Consul is to be asked at once, without waiting: some are doubted, or a hold is over."""
        return bool(self._doubted) or self.shortest_hold_s <= 0

    def remembered_by(self, answer: Answer) -> bool:
        """Whether something known before is still the same registration."""
        return not (self._live or self._doubted) or any(i.origin in self._origins for i in answer.instances)

    def note(self, source: str, asked: str) -> str:
        """Where the set comes from, for messages. ``asked``: the service and what else the question named."""
        if self._held:
            total = len(self.endpoints)
            hidden = sum(left_s == inf for _, left_s in self._held.values())
            if hidden:
                return f"{source}: the token cannot read {hidden} of {total} instances; lb keeps using them"
            gone = f"{len(self._held)} of {total} instances are missing from Consul"
            return f"{source}: {gone}; lb keeps using them for {self._hold_s:g} s"
        if self._live or self._doubted:
            return source
        if not self._listed:
            return f"{source}: no service {asked} is registered"
        counts: dict[str, int] = {}
        for instance in self._listed:
            counts[instance.status] = counts.get(instance.status, 0) + 1
        words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        why = next((f" ({i.endpoint.id}: {i.why})" for i in self._listed if i.why), "")
        return f"{source}: service {asked} has no usable instance: {words}{why}"

    # ---- an answer ----

    def learn(self, answer: Answer, *, passed_s: float, forgot: bool, recovered: bool, proof: bool) -> list[str]:
        """Take in an answer. What an operator should hear of, in words.

        ``passed_s``: seconds since the last good answer. ``forgot``: Consul has lost what it knew. ``recovered``: it
        is the first answer after an interruption. ``proof``: the question was asked because of `wants_proof`.
        """
        remarks: list[str] = []
        before = self._live | self._doubted
        self._listed = self._named(answer.instances, remarks)
        listed = {i.endpoint.key for i in self._listed}
        self._live = self._one_each({i.endpoint.key: i.endpoint for i in self._listed if i.usable}, remarks)
        hidden = self._hidden(answer, listed)
        unjudged = {i.endpoint.key for i in self._listed if not i.judged} if recovered else set()
        missing = before.keys() - listed if answer.streamed and not proof else set()

        held: dict[_Key, tuple[Endpoint, float]] = {}
        for key, (endpoint, left_s) in self._held.items():
            if key in hidden:
                held[key] = endpoint, inf
            elif left_s > 0 or not proof:
                held[key] = endpoint, left_s - passed_s
        doubted: dict[_Key, Endpoint] = {}
        for key, endpoint in before.items():
            if forgot or key in unjudged:
                held[key] = endpoint, self._hold_s
            elif key in hidden:
                held[key] = endpoint, inf
            elif key in missing:
                doubted[key] = endpoint
        if self._filtered:
            remarks.append(f"Consul's ACLs hide instances from this token; it needs {RIGHTS}")
        elif not answer.streamed:
            held = {key: (endpoint, left_s) for key, (endpoint, left_s) in held.items() if left_s < inf}
        answered_for = self._answered_for((*held, *doubted))
        self._held = {key: kept for key, kept in held.items() if key not in answered_for}
        self._doubted = {key: endpoint for key, endpoint in doubted.items() if key not in answered_for}

        origins = {i.origin for i in self._listed}
        self._origins = self._origins | origins if self._doubted else origins
        self._forget_names(answer)
        return remarks

    def _hidden(self, answer: Answer, listed: set[_Key]) -> set[_Key]:
        """Those that the token could read once, and that this answer may have filtered out."""
        if not answer.streamed:
            self._filtered = answer.filtered
        if not self._filtered:
            self._complete = listed if not answer.streamed else self._complete | listed
        return self._complete - listed if answer.filtered else set()

    def _answered_for(self, keys: Collection[_Key]) -> set[_Key]:
        """Those of them of which the answer speaks: judged unusable, or usable under another key."""
        if not keys:
            return set()
        ids, addresses = {key[0] for key in self._live}, {key[1] for key in self._live}
        judged = {i.endpoint.key for i in self._listed if not i.usable and i.judged}
        return {key for key in keys if key[0] in ids or key[1] in addresses or key in judged}

    # ---- ids and addresses that are registered twice ----

    def _named(self, instances: tuple[Instance, ...], remarks: list[str]) -> tuple[Instance, ...]:
        """The instances by the names that they go by here."""
        same: dict[str, list[Instance]] = {}
        for instance in instances:
            same.setdefault(instance.endpoint.id, []).append(instance)
        if len(same) == len(instances) and not self._at_node:
            return instances
        for id, found in same.items():
            plain = [i for i in found if i.endpoint.key not in self._at_node]
            if len(plain) > 1:
                plain.sort(key=lambda i: (i.endpoint.key not in self._live, i.origin[1], i.node))
                self._at_node.update({i.endpoint.key: f"{id}@{i.node}" for i in plain[1:]})
            if len(found) > 1:
                where = ", ".join(sorted(f"{i.endpoint.address} (node {i.node})" for i in found))
                remarks.append(f"id {id!r} is registered at several addresses: {where}; each address is an endpoint")
        return tuple(self._renamed(instance) for instance in instances)

    def _renamed(self, instance: Instance) -> Instance:
        name = self._at_node.get(instance.endpoint.key)
        return replace(instance, endpoint=replace(instance.endpoint, id=name)) if name else instance

    def _forget_names(self, answer: Answer) -> None:
        if self._at_node:
            listed = {i.endpoint.key for i in answer.instances}
            self._at_node = {
                key: name
                for key, name in self._at_node.items()
                if key in listed or (name, key[1]) in self._held or (name, key[1]) in self._doubted
            }

    @staticmethod
    def _one_each(live: dict[_Key, Endpoint], remarks: list[str]) -> dict[_Key, Endpoint]:
        """Of several ids at one address the first counts."""
        at: dict[str, str] = {}
        for id, address in live:
            at[address] = min(id, at.get(address, id))
        if len(at) == len(live):
            return live
        for address, id in at.items():
            others = sorted(key[0] for key in live if key[1] == address and key[0] != id)
            if others:
                names = ", ".join(others)
                remarks.append(f"{address} is registered as {id} and as {names}; it is one endpoint, {id}")
        return {key: endpoint for key, endpoint in live.items() if at[key[1]] == key[0]}

    def __repr__(self) -> str:
        return f"<Known {len(self._live)} live, {len(self._held)} held, {len(self._doubted)} doubted>"
