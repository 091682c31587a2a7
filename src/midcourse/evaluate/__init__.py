"""Methods and rewards judged: figures with intervals, and pages to look at."""
