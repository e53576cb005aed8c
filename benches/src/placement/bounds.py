"""Lower bounds of vector packing by column generation with HiGHS (pip install highspy==1.15.1 numpy).

usage: bounds.py INSTANCES CACHE SECONDS_EACH SECONDS_ALL

INSTANCES: JSON list of {"key", "capacity": [..], "items": [[amounts.., count], ..]}. CACHE: JSON object of key to bound; bounds
found are added to it after each instance, keys that are in it are skipped. The master problem is the pattern LP. Patterns come
from a greedy search from each item; when that finds none, the multi-dimensional knapsack is solved by HiGHS as a MILP. Its upper
bound V makes Farley's bound at any time: no bin is worth more than V, so at least worth / V bins are needed.
"""

import json
import math
import os
import sys
import time

import highspy
import numpy

MARGIN = 1e-6


def quiet():
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    return solver


class Master:
    def __init__(self, demand, limits):
        self.solver = quiet()
        self.demand = demand
        self.known = set()
        infinity = highspy.kHighsInf
        for count in demand:
            self.solver.addRow(float(count), infinity, 0, numpy.array([], numpy.int32), numpy.array([]))
        for row, limit in enumerate(limits):
            pattern = numpy.zeros(len(demand))
            pattern[row] = limit
            self.add(pattern)

    def add(self, pattern):
        key = pattern.astype(numpy.int32).tobytes()
        if key in self.known:
            return False
        self.known.add(key)
        rows = numpy.flatnonzero(pattern).astype(numpy.int32)
        self.solver.addCol(1.0, 0.0, highspy.kHighsInf, len(rows), rows, pattern[rows])
        return True

    def prices(self):
        self.solver.run()
        return numpy.maximum(0.0, numpy.array(self.solver.getSolution().row_dual))


def greedy(shares, limits, prices, random):
    """From each item a pattern, by price for its share of what is free."""
    count, width = shares.shape
    free = 1.0 - shares
    patterns = numpy.eye(count)
    weights = random.uniform(0.5, 1.5, width)
    alive = numpy.ones(count, bool)
    while alive.any():
        seeds = numpy.flatnonzero(alive)
        scarce = weights / numpy.maximum(free[seeds], 0.02)
        score = prices[None, :] / (scarce @ shares.T + 1e-9)
        fits = numpy.all(shares[None, :, :] <= free[seeds][:, None, :] + 1e-12, axis=2)
        score[~fits | (patterns[seeds] >= limits[None, :])] = 0.0
        best = score.argmax(axis=1)
        found = score[numpy.arange(len(seeds)), best] > 0.0
        alive[seeds[~found]] = False
        seeds, best = seeds[found], best[found]
        patterns[seeds, best] += 1
        free[seeds] -= shares[best]
    return patterns


def knapsack(amounts, capacity, limits, prices, seconds):
    """The best pattern found and an upper bound of all."""
    solver = quiet()
    solver.setOptionValue("time_limit", max(0.2, seconds))
    solver.setOptionValue("mip_rel_gap", 0.002)
    for price, limit in zip(prices, limits):
        solver.addVar(0.0, float(limit))
    count = len(prices)
    indices = numpy.arange(count, dtype=numpy.int32)
    solver.changeColsCost(count, indices, -prices)
    solver.changeColsIntegrality(count, indices, numpy.array([highspy.HighsVarType.kInteger] * count))
    for dimension, most in enumerate(capacity):
        solver.addRow(0.0, float(most), count, indices, amounts[:, dimension].astype(float))
    solver.run()
    upper = -solver.getInfo().mip_dual_bound
    solution = solver.getSolution().col_value
    pattern = numpy.round(numpy.array(solution)) if len(solution) == count else numpy.zeros(count)
    if numpy.any(pattern @ amounts > capacity):
        pattern = numpy.zeros(count)
    return pattern, upper


def bound(instance, seconds):
    deadline = time.monotonic() + seconds
    kinds = {}
    for *amounts, count in instance["items"]:
        kinds[tuple(amounts)] = kinds.get(tuple(amounts), 0) + count
    amounts = numpy.array(list(kinds.keys()), dtype=numpy.int64)
    demand = numpy.array(list(kinds.values()), dtype=numpy.int64)
    capacity = numpy.array(instance["capacity"], dtype=numpy.int64)
    shares = amounts / numpy.maximum(capacity, 1)
    copies = numpy.where(amounts > 0, capacity // numpy.maximum(amounts, 1), demand[:, None]).min(axis=1)
    limits = numpy.minimum(copies, demand)
    random = numpy.random.default_rng(1)
    master = Master(demand, limits)
    best = 0
    smooth = shares.mean(axis=1)
    while time.monotonic() < deadline:
        prices = master.prices()
        smooth = 0.6 * smooth + 0.4 * prices
        added = 0
        for pattern in greedy(shares, limits, smooth, random):
            if pattern @ prices > 1.0 + MARGIN and master.add(pattern):
                added += 1
        if added > len(demand) // 50 and time.monotonic() < deadline - seconds / 3:
            continue
        pattern, upper = knapsack(amounts, capacity, limits, smooth, min(3.0, deadline - time.monotonic()))
        if math.isfinite(upper) and upper > 0.0:
            best = max(best, math.ceil(demand @ smooth / max(upper, 1e-9) - MARGIN))
        if not master.add(pattern) and added == 0 and numpy.abs(smooth - prices).max() < 1e-4:
            break
    return best


def main():
    instances, cache_path, each, total = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    end = time.monotonic() + total
    cache = {}
    if os.path.exists(cache_path):
        with open(cache_path, encoding="utf-8") as file:
            cache = json.load(file)
    with open(instances, encoding="utf-8") as file:
        todo = [instance for instance in json.load(file) if instance["key"] not in cache]
    for instance in todo:
        if time.monotonic() > end:
            break
        cache[instance["key"]] = bound(instance, each)
        with open(cache_path + ".new", "w", encoding="utf-8") as file:
            json.dump(cache, file, indent=1, sort_keys=True)
        os.replace(cache_path + ".new", cache_path)


if __name__ == "__main__":
    main()
