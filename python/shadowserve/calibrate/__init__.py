# SPDX-License-Identifier: Apache-2.0
"""`shadowserve calibrate`: how coarse a model's KV may be coded, measured on that model.

texts: documents in three splits; model: the model's KV and what it predicts from it; sensitivity:
which head and channel matters how much; references: what other systems do to KV; coding: the C
codec; measure: through real attention; search: bounds and scales; page, picture: what is written.
Needs torch and transformers (`pip install shadowserve[calibrate]`); nothing else imports this.
"""
