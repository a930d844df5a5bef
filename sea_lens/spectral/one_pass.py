"""One pass over demonstrations, and what it is read for: sites and feature maps (docs/method.md 2.2).

A batch goes through the model once. What is kept of it is decided for each site, since sites differ in their width:
activations, which serve every feature map, or a sum for each map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .._support.processes import mine, of_first, summed, together
from .._support.progress import tracked
from ..models.lens import Lens
from ..models.reading import Reading, ReadingPlan, Readings
from ..models.sites import Site
from ..models.vllm_engine import Engine
from ..texts.demonstrations import Demonstrations
from .covariance import CrossCovariance, refuse_non_finite
from .features import FeatureMap
from .site_stores import begin_stores, whole_shards
from .statistics import Activations, InMemory, Statistics, Sums, stacked


@dataclass(frozen=True)
class OnePass:
    """What is read of demonstrations in one pass, refused where it is not finite.

    Attributes:
        lens: the model.
        readings: of each site.
        demonstrations: N of them.
        layers: at which layers.
        plan: which demonstrations are read together.
    """

    lens: Lens | Engine
    readings: Sequence[Reading]
    demonstrations: Demonstrations
    layers: tuple[int, ...]
    plan: ReadingPlan

    @classmethod
    def of(
        cls,
        lens: Lens | Engine,
        readings: Sequence[Reading],
        demonstrations: Demonstrations,
        layers: tuple[int, ...],
        batch_size: int,
    ) -> "OnePass":
        """Encode all texts and plan how they are read; errors as in `ReadingPlan.of`."""
        plan = ReadingPlan.of(readings, lens, demonstrations, layers, batch_size=batch_size)
        return cls(lens, readings, demonstrations, layers, plan)

    def empty(self, reading: Reading, feature: FeatureMap) -> CrossCovariance:
        """Statistics of nothing yet, which say what they will be of."""
        units, width = Site.of(reading.site).shape(self.lens)
        provenance = {"model": self.lens.record, **reading.record, "demonstrations": [self.demonstrations.record]}
        return CrossCovariance.empty(
            self.layers, units, width, site=reading.site, feature=feature, provenance=provenance
        )

    def batches(
        self, numbers: Sequence[int], *, progress: bool = False
    ) -> Iterator[tuple[list[int], tuple[Readings, ...]]]:
        """Some of the plan's batches: the indices of demonstrations, and their readings at each site."""
        names = self.demonstrations.names
        for indices, of_sites in self.plan.read_sites(numbers, progress=progress):
            for reading, three in zip(self.readings, of_sites, strict=True):
                for kind, values in three._asdict().items():
                    refuse_non_finite(kind, values, [names[i] for i in indices], reading.site, self.layers)
            yield indices, of_sites

    def kept(
        self, features: Sequence[FeatureMap], folders: Sequence[Path] | None = None, *, progress: bool = False
    ) -> list[list[CrossCovariance]]:
        """`in_memory`, or where there are folders, `in_stores`."""
        if folders is None:
            return self.in_memory(features, progress=progress)
        return self.in_stores(features, folders, progress=progress)

    def in_memory(
        self, features: Sequence[FeatureMap], *, sums: bool = True, progress: bool = False
    ) -> list[list[CrossCovariance]]:
        """Statistics of each site, and of each feature map there, on the CPU.

        Args:
            features: the maps φ.
            sums: from as many demonstrations on as the activations of a site are wide, add these up for each map;
                without it they are kept whatever their number.
            progress: show a progress bar.
        """
        empty = [[self.empty(reading, feature) for feature in features] for reading in self.readings]
        n, device = len(self.demonstrations), self.lens.double_device
        totals = [
            [Sums.empty(one.statistics.layout, device) for one in of_site] if sums and n >= of_site[0].d else []
            for of_site in empty
        ]

        def read() -> list[tuple[list[int], dict[int, InMemory]]]:
            found = []
            for indices, of_sites in self.batches(mine(range(len(self.plan.batches))), progress=progress):
                kept = {}
                for site, three in enumerate(of_sites):
                    if not totals[site]:
                        kept[site] = InMemory(stacked([x.cpu() for x in three]))
                        continue
                    values = stacked(three)
                    for total, feature in zip(totals[site], features, strict=True):
                        total.add(values, feature)
                found.append((indices, kept))
            return found

        batches = [batch for of_process in together(read) for batch in of_process]
        summed(lambda: [x for of_site in totals for total in of_site for x in (*total.outer, *total.single)])
        order = torch.tensor([index for indices, _ in batches for index in indices])
        filled = []
        for site, of_site in enumerate(empty):
            if totals[site]:
                statistics: list[Statistics] = [replace(total, n=n).to("cpu") for total in totals[site]]
            else:
                parts = tuple(kept[site] for _, kept in batches)
                statistics = [Activations(of_site[0].statistics.layout, parts, order)] * len(features)
            filled.append([replace(one, statistics=its) for one, its in zip(of_site, statistics, strict=True)])
        return filled

    def in_stores(
        self, features: Sequence[FeatureMap], folders: Sequence[Path], *, progress: bool = False
    ) -> list[list[CrossCovariance]]:
        """The same, kept in the shards of a folder for each site; what is there already is not read again.

        Raises:
            FileError, MismatchError: as `begin_stores`.
        """
        empty = [[self.empty(reading, feature) for feature in features] for reading in self.readings]
        firsts, batches = [of_site[0] for of_site in empty], self.plan.batches
        stores = of_first(lambda: begin_stores(folders, firsts, batches))
        missing = of_first(lambda: [store.missing() for store in stores])
        # The shard that a batch goes to, at each site that lacks it.
        shards = [
            {number: shard for shard in of_site for number in store.batches[shard]}
            for store, of_site in zip(stores, missing, strict=True)
        ]
        runs = [[number for number in run if any(number in one for one in shards)] for run in whole_shards(stores)]
        runs = mine([run for run in runs if run])

        def write() -> None:
            for run in tracked(runs, "capturing activations", len(runs), show=progress):
                held: list[list[list[Tensor]]] = [[] for _ in stores]
                for number, (_, of_sites) in zip(run, self.batches(run), strict=True):
                    for store, its, parts, three in zip(stores, shards, held, of_sites, strict=True):
                        if number not in its:
                            continue
                        parts.append([x.cpu() for x in three])
                        if number == store.batches[its[number]][-1]:
                            store.write(its[number], [torch.cat(sides) for sides in zip(*parts, strict=True)])
                            parts.clear()

        together(write)
        read = [store.read() for store in stores]
        return [[replace(one, statistics=its) for one in of_site] for of_site, its in zip(empty, read, strict=True)]
