"""`SharedPrefix`: what lies below a changed site is computed once for all variants, exactly."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from layersurgery.sites import Site
from layersurgery.surgery import Surgery
from layersurgery.surgery._resolve import _around
from layersurgery.surgery._surgery import Block
from layersurgery.sweeps._notes import Notes
from layersurgery.sweeps._prefix_course import Course, Ground, Moved
from layersurgery.sweeps._prefix_followed import Followed
from layersurgery.sweeps._prefix_map import Map
from layersurgery.sweeps._prefix_probe import find_tail
from layersurgery.sweeps._prefix_record import NO_ROOM, Pass, Record, Recorder
from layersurgery.sweeps._prefix_replay import Replayer
from layersurgery.sweeps._prefix_state import Changes, Standing, cannot_share, cannot_share_here
from layersurgery.sweeps._prefix_tail import Tail
from layersurgery.sweeps._prefix_zeros import Silence, SilentParts, SiteParts
from layersurgery.sweeps._recurring import Applied, Recurring
from layersurgery.sweeps._stand_ins import StandIns
from layersurgery.sweeps._usage import Room

_EACH = "computed for each variant, since "


class SharedPrefix:
    """Lets the variants of a model share what the unmodified model computes below the site that each changes.

    The scorer runs once on the unmodified model, inside `recording`, and then for each variant on the very same
    samples, inside `replaying`, where the surgery is in force. The model's own code runs as ever, but modules that had
    ended before anything that was changed began are not computed again: they give what they gave, and do to a KV cache
    or the like what they did. Matrices of zeros are not multiplied with, and a module that is zeros only and ends in
    such a matrix is not run. The outcome is the same to the last bit; what cannot be shown to be so is computed in
    full, and `notes` says why.

    Nothing of the model remains changed. While a block is open, modules have a `forward` of their own.

    Args:
        model: the model itself, not wrapped.
        sites: where the variants differ from it.
        limit: bytes that may be kept of a recording; None: a quarter of the memory that is free when it begins. What
            does not fit is computed for each variant.

    Attributes:
        has_answered: whether anything was left out in the last variant.
        has_cut: whether positions that are not scored were.
        trims: whether to look for what of the last layer is needed at scored positions only, which takes as long as
            some seven of its runs.
        lacked_memory: whether some of the last recording was not kept since there was no room.

    Raises:
        ModelMismatchError: if a site is not in the model.

    Examples:
        >>> import torch, layersurgery as ls
        >>> model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))).eval()
        >>> sites = ls.select(model, pattern="*")
        >>> prefix, tokens = SharedPrefix(model, sites), torch.ones(1, 2)
        >>> with torch.no_grad(), prefix.recording():
        ...     base = model(tokens)
        >>> with torch.no_grad(), ls.Surgery(at=sites[2], do=ls.Zero())(model), prefix.replaying(sites[2]):
        ...     variant = model(tokens)  # computes the last of the three only
        >>> prefix.notes
        []
    """

    def __init__(self, model: nn.Module, sites: Iterable[Site], limit: int | None = None) -> None:
        self._parts = Map(model)
        self._sites = {site: _modules(model, site) for site in sites}
        self._below: dict[nn.Module, list[tuple[nn.Module, ...]]] = {}
        self._proven: dict[tuple[Any, ...], bool] = {}
        self._tops: set[nn.Module] = set()
        for site, modules in self._sites.items():
            tops = _around(model, site)[1]
            self._tops.update(tops)
            for holder in self._parts.above(tops):
                self._below.setdefault(holder, []).append(modules)
        self._site_parts = SiteParts.of(())
        self._copied: set[nn.Module] = set()
        self._volatile: set[tuple[nn.Module, str]] = set()
        self._draws = True  # as far as is known
        self._standing: Standing | None = None
        self._recurring = Recurring(model)
        self._followed: Followed | None = None
        self._tail: Tail | None = None
        self._whole = self._sought = False
        self._record = Record()
        self._ground: Ground | None = None
        self._recorded: list[Pass] = []
        self._notes = Notes()
        self._limit, self._room = limit, Room(model)
        self._ran: set[nn.Module] | None = None
        self._courses: dict[Applied, Course] = {}
        self._rests_on: dict[Applied, list[int]] = {}
        self.has_answered = self.has_cut = self.lacked_memory = False
        self.trims = True

    @property
    def notes(self) -> list[str]:
        """What is computed in full, and why, in words; empty: all that could be shared was."""
        return list(self._notes)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept from the last recording, apart from what the model itself keeps."""
        own = {
            one.untyped_storage().data_ptr() for one in (*self._parts.root.parameters(), *self._parts.root.buffers())
        }
        calls = (call for one in self._record.passes for call in one.calls() if call.needed)
        held = [held.tensor for call in calls for held in call.held]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
        return sum(size for address, size in storages.items() if address not in own)

    @property
    def passes(self) -> Sequence[Pass]:
        """The calls that the scorer made on the unmodified model, as far as they were recorded by now."""
        return tuple(self._recorded)

    @property
    def tail(self) -> Tail | None:
        """That of the end of the model of which only scored positions are computed; None: all of it is computed."""
        return self._tail if self._tail and self._tail.modules else None

    def compute_all_positions(self, why: str) -> None:
        """From now on, at the end of the model too."""
        self._tail, self._whole, self._courses = None, True, {}
        self._notes.tell(f"positions that are not scored are computed in the last layer, too, since {why}")

    def take_fewer(self) -> None:
        """Let go of a recording that did not fit, of which nothing need be told: one of fewer samples will."""
        self.forget()
        self._notes.take_back(_EACH + NO_ROOM)

    def forget(self) -> None:
        """Let go of what is kept."""
        self._record, self._recorded, self._ground, self._ran = Record(), [], None, None
        self._courses, self._rests_on = {}, {}

    def ran(self, sites: Iterable[Site]) -> bool | None:
        """Whether any module of these sites was called in the last recording; None: that is not known."""
        if self._ran is None:
            return None
        return any(not self._ran.isdisjoint(self._modules_of(site)) for site in sites)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the scorer's call on the unmodified model; what was recorded before is forgotten."""
        self.forget()
        self.lacked_memory = False
        reason = cannot_share_here(self._parts.root)
        if not reason and (self._standing is None or self._standing.changes()):
            self._standing = self._tail = None
            reason = cannot_share(self._parts.modules)
        if reason:
            self._notes.tell(f"nothing of the model is shared between variants, since {reason}")
            yield
            return
        standing = self._standing or self._stand()
        limit = self._room.read() if self._limit is None else self._limit
        followed = self._to_follow()
        recorder = Recorder(
            self._parts,
            self._site_parts,
            self._below,
            self._copied,
            limit,
            inside=followed.inside,
            each=self._draws,
        )
        self._recorded = recorder.passes
        with StandIns(followed.modules, recorder.called):
            yield
        self._ran = recorder.ran
        self.lacked_memory, self._draws = recorder.lacked_memory, recorder.drew
        if recorder.left_alone:
            self._notes.tell(recorder.left_alone)
        if recorder.problem:
            self._notes.tell(f"nothing of the model is shared between variants, since {recorder.problem}")
        else:
            self._keep(recorder, standing, complete=not followed.inside)

    def _to_follow(self) -> Followed:
        """What the next recording takes notice of: all modules, as long as something is still to be found out."""
        seeks = self._seeks_tail and not self._sought
        return Followed(self._parts.modules) if self._followed is None or seeks else self._followed

    @property
    def _seeks_tail(self) -> bool:
        return self._tail is None and self.trims and not self._whole

    def _keep(self, recorder: Recorder, standing: Standing, *, complete: bool) -> None:
        """Keep what was recorded of a model, with what has changed since it stood like this.

        Args:
            recorder: what was recorded.
            standing: how the model stood.
            complete: whether all modules were followed.
        """
        changes = standing.changes()
        self._volatile |= changes.attributes
        if changes:
            standing, self._tail = self._stand(), None
        endings = {top: ending for one in recorder.passes for top, ending in one.endings.items()}
        self._site_parts = self._site_parts.ending_so(endings)
        self._judge(recorder.passes, changes, standing)
        self._record = Record.of(recorder.passes)
        if not changes and complete:
            self._look_closely(recorder.passes, standing)
        at_the_end = self._tail.around if self._tail else frozenset[nn.Module]()
        self._ground = Ground(self._parts, recorder.passes, standing.groups, at_the_end)

    def _look_closely(self, passes: list[Pass], standing: Standing) -> None:
        """Find what stays as it is from one recording to the next, when all modules were followed in one."""
        if self._seeks_tail:
            self._tail, self._sought = find_tail(self._parts, self._record, list(self._sites.values())), True
        if not self._volatile and not any(one.problem for one in passes):
            kept = {*self._below, *self._site_parts.ends, *standing.patched, *standing.hooked}
            self._followed = Followed.after(self._parts, passes, kept, self._tops)

    def in_force(self, surgery: Surgery) -> AbstractContextManager[Applied | None]:
        """Puts a surgery in force; gives what it changes, for `replaying` inside, if all else is as it was recorded.

        Raises:
            ModelMismatchError, SurgeryError: as for `with surgery(model):`.
        """
        anywhere = any(step.tied == "everywhere" for step in surgery.steps)
        if self._standing is not None and self._ground is not None and not self._volatile and not anywhere:
            known = self._recurring.known(surgery)
            modules = known.modules if known else frozenset(one for at in surgery.sites for one in self._modules_of(at))
            groups = self._rests_on[known] if known in self._rests_on else self._ground.groups(modules, itself=True)
            if not self._standing.changes(groups):
                return self._recurring.in_force(surgery, modules)
        return Block(lambda: surgery.attach(self._parts.root), None)

    def prepare(self, surgeries: Iterable[Surgery]) -> None:
        """Find out what will happen in these variants, as far as it can be known: for all in one go, that is quicker.

        That is so for those that were in force before, on other samples.
        """
        if self._ground is None or self._volatile:
            return
        for surgery in surgeries:
            known = self._recurring.known(surgery)
            if known is not None and known.recurs:
                self._courses[known] = self._course(self._record, known.modules, known.silent)
                self._rests_on[known] = self._ground.groups(known.modules, itself=True)

    @contextmanager
    def replaying(self, site: Site | None, first: int = 0, applied: Applied | None = None) -> Iterator[None]:
        """Around the scorer's call on a variant, on the samples that were recorded, while its surgery is in force.

        Args:
            site: where the variant differs; None: nowhere.
            first: which of the recorded calls the first one to come is.
            applied: all that is different from when it was recorded; None: that is looked for.
        """
        self.has_answered = self.has_cut = False
        if not self._record.passes or self._standing is None or self._ground is None:
            yield
            return
        if applied is None:
            site_modules = () if site is None else self._modules_of(site)
            changes = self._standing.changes(None if site is None else self._ground.groups(site_modules))
            unsettled = {pair[0] for pair in changes.attributes & self._volatile}
            changed = changes.made_over | {pair[0] for pair in changes.attributes - self._volatile}
            changed = frozenset((*changed, *site_modules))
            silent = SilentParts.among(changed)
        else:
            unsettled, changed, silent = set[nn.Module](), applied.modules, applied.silent
        course = None if applied is None or first else self._courses.get(applied)
        if course is None:
            record = Record(self._record.passes[first:], self._record.watched) if first else self._record
            course = self._course(record, changed, silent, unsettled)
        silence = Silence(silent, None if self._volatile else self._proven)
        replayer = Replayer(course, silence, self._notes.tell)
        try:
            with StandIns(course.watched, replayer.called):
                yield
        finally:
            self.has_answered, self.has_cut = replayer.has_answered or replayer.has_cut, replayer.has_cut

    def _course(
        self,
        record: Record,
        changed: frozenset[nn.Module],
        silent: SilentParts,
        unsettled: Collection[nn.Module] = (),
    ) -> Course:
        tail = self.tail.serving(changed) if self.tail and not unsettled else None
        return Course(record, Moved(self._parts, changed, unsettled), silent, tail)

    def _stand(self) -> Standing:
        """See the model as it is now as the unmodified one."""
        self._standing, self._recurring = Standing(self._parts.modules), Recurring(self._parts.root)
        self._site_parts, self._followed, self._sought = SiteParts.of(self._sites.values()), None, False
        return self._standing

    def _modules_of(self, site: Site) -> tuple[nn.Module, ...]:
        return self._sites[site] if site in self._sites else _modules(self._parts.root, site)

    def _judge(self, passes: list[Pass], changes: Changes, standing: Standing) -> None:
        """Find the calls that cannot be answered for, since they do more than their output shows."""
        changing = changes.made_over | {module for module, _ in changes.attributes}
        above = changing | self._parts.above(changing)
        for one in passes:
            for call in one.calls():
                if not call.needed:
                    continue
                inside = {call.module, *one.events[call.begin : call.end]}
                why = call.problem or one.problem
                if not why and (call.module in above or not inside.isdisjoint(changing)):
                    why = "its state changes in each call"
                elif not why and not inside.isdisjoint(standing.patched):
                    why = "a forward was put in place of its own"
                elif not why and not (inside - {call.module}).isdisjoint(standing.hooked):
                    why = "there are hooks inside it"
                elif not why and not call.counted.are_intact:
                    why = "others write into what it takes or gives (from the second batch on, that is copied)"
                    self._copied.add(call.module)
                if why:
                    self._notes.tell(_EACH + why, self._parts.paths[call.module])
                    call.problem = why
                    call.release()


def _modules(model: nn.Module, site: Site) -> tuple[nn.Module, ...]:
    """The modules that a site is made of, and those inside that hold parameters: others may be in use elsewhere."""
    tops = _around(model, site)[1]
    return tuple(dict.fromkeys([*tops, *(one for top in tops for one in top.modules() if one._parameters)]))
