"""``mmecg reindex``: another bundle for a corpus."""

import json
import shutil
from contextlib import closing

import pytest
import torch
from mmecg_index.corpus import Corpus
from mmecg_index.progress import CancelledError
from mmecg_index.reembed import Reembedding

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.bundle import load_bundle, save_bundle


@pytest.fixture
def copy(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "copy")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A bundle with another projection of ECGs."""
    path = tmp_path_factory.mktemp("bundles") / "other"
    bundle = load_bundle()
    with torch.no_grad():
        bundle.encoder.projection.linear.weight.normal_(std=0.05)
    return load_bundle(path) if save_bundle(path, bundle.encoder, bundle.config) else None


def interrupt(path, encoder):
    with closing(Corpus(path)) as corpus:
        work = Reembedding(corpus, encoder, batch=8, rest=0)
        work._on_batch = lambda count: work.cancel()
        with pytest.raises(CancelledError):
            work.run()


def test_a_corpus_that_has_the_bundle_is_left_as_it_is(run, copy):
    assert run("reindex", copy, "--bundle", DEFAULT_BUNDLE).code == 0
    state = json.loads(run("reindex", copy, "--status", "--json").out)
    assert state["done"]
    assert state["studies"] == state["total"]
    assert "all with embeddings of bundle" in run("reindex", copy, "--status").out
    assert run("reindex", copy).code == 2
    assert "holds no corpus" in run("reindex", copy.parent / "nothing", "--status").error
    assert "no MANIFEST.json" in run("reindex", copy, "--bundle", copy).error


@pytest.mark.slow
def test_it_is_interrupted_shown_given_up_and_done(run, copy, other):
    interrupt(copy, other.encoder)
    shown = run("reindex", copy, "--status")
    assert "8 of 24 studies have embeddings of bundle" in shown.out
    assert other.fingerprint[:12] in shown.out
    cancelled = json.loads(run("reindex", copy, "--cancel", "--json").out)
    assert (cancelled["fingerprint"], cancelled["done"]) == (load_bundle().fingerprint, True)
    interrupt(copy, other.encoder)
    done = json.loads(run("reindex", copy, "--bundle", other.path, "--json").out)
    assert (done["fingerprint"], done["done"], done["studies"]) == (other.fingerprint, True, 24)
    with Corpus.open(copy, other.fingerprint) as corpus:
        assert corpus.stats().embeddings["ecg"] == 24
    assert "mmecg reindex" in run("search", "--corpus", copy, "--text", "sinus rhythm").error
