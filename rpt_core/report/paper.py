"""The figures of arXiv 2506.08007v1 that the report sets beside its own. They are the paper's, for 14-billion-parameter models."""

# Table 1: next-token accuracy in percent on 200 held-out documents; easy, medium, hard.
TABLE_1 = (
    ("standard, Qwen2.5-14B", (41.90, 30.03, 20.65)),
    ("standard, R1-Distill-Qwen-14B", (41.60, 29.46, 20.43)),
    ("reasoning, R1-Distill-Qwen-14B (before)", (3.31, 1.66, 1.41)),
    ("reasoning, RPT-14B (after)", (45.11, 33.56, 23.75)),
)
# Figure 5: coefficient of determination of the power law.
R_SQUARED = {"easy": 0.995, "medium": 0.997, "hard": 0.989}
# Table 2: accuracy in percent before and after RLVR on Skywork-OR1 questions.
TABLE_2 = {"base": (51.2, 52.7), "ntp": (10.7, 13.0), "rpt": (56.3, 58.3)}
# Table 3: zero-shot accuracy in percent.
TABLE_3 = (
    ("SuperGPQA", "ntp", "R1-Distill-Qwen-14B", 32.0), ("SuperGPQA", "reasoning", "R1-Distill-Qwen-14B (before)", 36.1),
    ("SuperGPQA", "reasoning", "RPT-14B (after)", 39.0),
    ("MMLU-Pro", "ntp", "R1-Distill-Qwen-14B", 48.4), ("MMLU-Pro", "reasoning", "R1-Distill-Qwen-14B (before)", 68.9),
    ("MMLU-Pro", "reasoning", "RPT-14B (after)", 71.1),
)
# §4.5: share of RPT's next-token thoughts relative to R1 solving problems.
PATTERNS = {"hypothesis": 1.618, "deduction": 0.262}
