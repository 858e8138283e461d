"""One bad row of a table is skipped and named; the rest becomes a corpus."""

import polars as pl
from mmecg_index.corpus import Corpus

from mmecg.bundle import load_bundle
from mmecg.datasets.parquet import SCHEMA


def test_bad_row_of_a_parquet_table(run, table, tmp_path):
    rows = pl.read_parquet(table).to_dicts()[:4]
    rows[1]["age_years"] = 500.0
    rows[2] |= {"report_raw": "-", "report_text": "-"}
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(tmp_path / "studies.parquet")
    outcome = run("build", "--data", tmp_path / "studies.parquet", "--out", tmp_path / "corpus")
    assert outcome.code == 1
    assert "study-1" in outcome.err
    assert "age_years" in outcome.err
    assert "500" not in outcome.err
    with Corpus.open(tmp_path / "corpus", load_bundle().fingerprint) as corpus:
        assert set(corpus.list_studies()[0]) == {"study-0", "study-2", "study-3"}
        embedded = corpus.stats().embeddings
        assert embedded["ecg"] == 3
        assert embedded["text"] == 2
