"""Images, two jobs without faults, and a server on this machine that imitates S3."""

import os

import pytest
from batch_jobs import do, make_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    do(images, output)
    return output


@pytest.fixture(scope="module")
def sharded(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("sharded")
    do(images, output, shards=4)
    return output


@pytest.fixture(scope="session")
def s3():
    """Return the address of an empty bucket, on a server that answers like S3, conditional puts included."""
    reason = "needs an S3-shaped server: pip install '.[test,services]'"
    server_of = pytest.importorskip("moto.server", reason=reason)
    s3fs = pytest.importorskip("s3fs", reason=reason)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
