"""Columns instead of records: NumPy into the log, SQL out of it, and no Python object per record on the way.

Run: python examples/columnar_sql.py [folder]      (pip install duckdb)
"""

import sys

import duckdb
import numpy

import fastlog

path = sys.argv[1] if len(sys.argv) > 1 else "example-measurements-0"
measurements = 100_000

random = numpy.random.default_rng(seed=7)
sensors = numpy.char.add("sensor-", random.integers(0, 4, measurements).astype("U1")).astype("S")
values = numpy.char.mod("%.3f", random.normal(20, 5, measurements)).astype("S")
timestamps = 1_700_000_000_000 + numpy.arange(measurements, dtype=numpy.int64) * 10

with fastlog.PartitionLog.open(path, durability="os") as log:
    start = log.append(values, keys=sensors, timestamps=timestamps)

    # The columns of a batch are views of the file, not copies.
    batch = log.read(start)
    print(f"one read: {len(batch):,} records, {batch.values.sizes.sum():,} bytes of values")

    # Anything that speaks Arrow reads the log itself; bytes become text with decode().
    with duckdb.connect() as connection:
        connection.register("log", log.batches(start=start))
        rows = connection.execute(
            """
            SELECT decode(key) AS sensor, count(*) AS records, avg(decode(value)::DOUBLE) AS mean
            FROM log GROUP BY sensor ORDER BY sensor
            """
        ).fetchall()
        connection.unregister("log")
    for sensor, records, mean in rows:
        print(f"{sensor}: {records:,} records, mean {mean:.2f}")
