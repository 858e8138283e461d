"""What a bundle's model card says of its prediction heads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mmecg.bundle import BundleConfig
from mmecg.prediction.result import SUPERCLASS_PREFIX

if TYPE_CHECKING:
    from mmecg.prediction.heads import PredictionHeads

RARE = 30
_SECTION = re.compile(r"\n## Prediction heads\n.*?(?=\n## |\Z)", re.DOTALL)


def prediction_card(heads: PredictionHeads, config: BundleConfig, figures: str = "") -> str:
    """Return the section of a model card: use, fitting, calibration, figures, limits.

    Parameters
    ----------
    heads : PredictionHeads
    config : BundleConfig
        Of the bundle: the heads are fitted on the folds that it was trained on.
    figures : str
        A Markdown table; empty: only where figures are.
    """
    training = config.training
    statements = [label for label in heads.labels if not label.startswith(SUPERCLASS_PREFIX)]
    rare = int((heads.prevalence[: len(statements)] * training.studies < RARE - 0.5).sum())
    table = f"\n{figures}\n" if figures else ""
    return f"""
## Prediction heads

`prediction/heads.safetensors` gives calibrated probabilities of {len(statements)} SCP-ECG statements and
{len(heads.labels) - len(statements)} superclasses, and age, from an ECG and what is known of the patient. They are
for this bundle alone.

- Intended use: research on prediction that knows the patient: methods, retrospective studies, sorting an archive for
  review by a cardiologist. Not for decisions about a patient.
- Fitted on: {training.data}, folds {", ".join(map(str, training.folds))}. A listed statement counts as present at
  any likelihood. The linear heads are fitted on this bundle's records; what says how much a score, vitals, a vote or a
  history is worth, on scores of two further bundles for patients that they had not seen.
- Calibration: of each label by its number of positives (a shared slope, beta, isotonic); Venn-Abers intervals;
  class-conditional conformal sets for a promised level of 0.5 to 0.99. It holds for 12 leads of 10 s and the prevalence
  of that data; the prevalence of another site can be given, and other recordings are flagged.
- Figures: `mmecg evaluate-prediction` on a fold that nothing was fitted or chosen on; mmecg/evaluation/README.md, which
  also has the subgroups, shifts and controls.
- Limits: one data set of one kind of recorder, of adults. {rare} of the statements have fewer than {RARE} records in
  it, so that little is known of them. Earlier studies there lie days apart more often than years; there were no notes,
  reports stood in for them. Without an ECG nothing is promised. The novelty score is not the share of faulty recordings
  at a site. Saliency explains the ECG's linear head, not the history.
{table}"""


def with_section(card: str, section: str) -> str:
    """Return a card with its section on prediction heads replaced, or added at its end."""
    return _SECTION.sub("", card).rstrip("\n") + "\n" + section
