"""RBD's side of commands.rs: CONF POOL REPEATS SIZE."""

import json
import sys
import time

import rados
import rbd

conf, pool, repeats, size = sys.argv[1:]
cluster = rados.Rados(conffile=conf, rados_id="admin")
cluster.connect()
context = cluster.open_ioctx(pool)
images = rbd.RBD()


def create():
    images.create(context, "made", int(size))


def snapshot():
    with rbd.Image(context, "made") as image:
        image.create_snap("base")
        image.protect_snap("base")


def clone():
    images.clone(context, "made", "base", context, "made-clone")


def remove_clone():
    images.remove(context, "made-clone")


def remove_snapshot():
    with rbd.Image(context, "made") as image:
        image.unprotect_snap("base")
        image.remove_snap("base")


def remove():
    images.remove(context, "made")


steps = [create, snapshot, clone, remove_clone, remove_snapshot, remove]
times = [[] for _ in steps]
for _ in range(int(repeats)):
    for step, taken in zip(steps, times):
        began = time.perf_counter()
        step()
        taken.append((time.perf_counter() - began) * 1000)
print(json.dumps(times))
