"""The store: no finished image is lost, none is stored twice.

An output (local path, ``s3://``, ``gs://``; through pyarrow.fs) holds::

    run.json                              identifies the run; written first
    parts/<digest>/<hh>/<id>-….parquet    finished images, those of a worker's call together
    shards/part-00000.parquet             the training set: one row per tile
    index/part-00000.parquet              one row per finished image of a shard, and the shard's checksum
    index/part-00000.pending.json         only while that shard is being replaced
    quarantine/<digest>/<id>.json         failed images
    inflight/<launch>/<batch>.json        a batch that a process works on
    attempts/<id>/<kind>-<token>.json     crashes that count against an image
    manifest.json                         contents of a finished run; written last
    damaged/                              copies of files that a repair removed
    .lock                                 the process that works on the output

Functions take the output as a :class:`~idc_ray.store.filesystem.StorageFolder`, which is cheap and can be pickled. Any
number of processes may use the same one: everything is written whole or not at all, and may be written again.
"""
