"""What the fork server imports before it starts processes; see :mod:`pools`."""

import nnunetv2.evaluation.evaluate_predictions
import nnunetv2.inference.predict_from_raw_data
import nnunetv2.run.run_training  # noqa: F401
from pools import take_over

take_over()
