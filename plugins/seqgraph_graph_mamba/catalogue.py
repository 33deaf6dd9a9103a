"""The data sets of this plugin, the tasks on them, and a run on each. Imports no torch and no domain library."""

from __future__ import annotations

from seqgraph.plugin import Dataset, Preset, Task

_PACKAGE = "seqgraph_graph_mamba"

# name, module:class, config class, summary
_DATASETS = (
    (
        "ogbg-molesol",
        "molecules:OgbMolecules",
        "OgbMolesol",
        "ESOL, water solubility of 1,128 molecules, scaffold split; ships with the package.",
    ),
    (
        "ogbg-mol",
        "molecules:OgbMolecules",
        "OgbMolecules",
        "OGB's sets of molecules, data.which=bace, bbbp, hiv, ...; needs data.root.",
    ),
    (
        "moleculenet",
        "molecules:MoleculeNet",
        "MoleculeNet",
        "MoleculeNet's tables, data.which=bbbp, tox21, ...; needs data.root.",
    ),
    (
        "smiles-csv",
        "molecules:SmilesCsv",
        "SmilesCsv",
        "Any CSV with a column of SMILES and columns of targets; needs data.root.",
    ),
    (
        "peptides-func",
        "lrgb:PeptidesFunc",
        "Lrgb",
        "LRGB's Peptides-func, 15,535 peptides, 10 labels; needs data.root.",
    ),
    (
        "peptides-struct",
        "lrgb:PeptidesStruct",
        "Lrgb",
        "LRGB's Peptides-struct, the same peptides, 11 values; needs data.root.",
    ),
    (
        "pascalvoc-sp",
        "lrgb:PascalVocSp",
        "Lrgb",
        "LRGB's PascalVOC-SP, 11,355 images, 21 classes of superpixels; needs data.root.",
    ),
    (
        "coco-sp",
        "lrgb:CocoSp",
        "Lrgb",
        "LRGB's COCO-SP, 123,286 images, 81 classes of superpixels; needs data.root.",
    ),
    (
        "pcqm-contact",
        "lrgb:PcqmContact",
        "Lrgb",
        "LRGB's PCQM-Contact, 529,434 molecules, links by MRR; needs data.root.",
    ),
    ("zinc-12k", "benchmarks:Zinc12k", "Zinc12k", "ZINC-12k, 12,000 molecules, penalised logP; needs data.root."),
    (
        "tudataset",
        "benchmarks:TUDataset",
        "TUDataset",
        "TUDatasets, data.which=MUTAG, ENZYMES, ..., ten folds; needs data.root.",
    ),
    ("pyg-file", "benchmarks:PygFile", "PygFile", "A file with a list of PyG's Data; needs data.root."),
    (
        "heterophilous",
        "node_sets:Heterophilous",
        "Heterophilous",
        "Nodes of heterophilous graphs, data.which=minesweeper, tolokers, ..., ten splits; needs data.root.",
    ),
    (
        "planetoid",
        "node_sets:Planetoid",
        "Planetoid",
        "Nodes of Cora, CiteSeer or PubMed, public split; needs data.root.",
    ),
    (
        "ogbn",
        "node_sets:OgbNodes",
        "OgbNodes",
        "OGB's large graphs of nodes, data.which=arxiv, by sampled neighbourhoods; needs data.root.",
    ),
    (
        "pyg-nodes",
        "node_sets:PygNodes",
        "PygNodes",
        "A file with one PyG Data and its masks of nodes; needs data.root.",
    ),
)

_TASKS = (
    ("graph-regression", "GraphRegression", "Real values of graphs: L1 or MSE, RMSE and MAE in physical units."),
    ("graph-classification", "GraphClassification", "Labels of graphs: logistic loss, macro AP and ROC-AUC."),
    ("graph-classes", "ClassPrediction", "One class a graph: cross-entropy, accuracy and macro F1."),
    ("node-classification", "ClassPrediction", "One class a node: cross-entropy, accuracy, macro F1, ROC-AUC."),
    ("link-prediction", "LinkPrediction", "Pairs of nodes: dot products, three mean reciprocal ranks."),
)

_PRESETS = (
    ("peptides-struct", "Graph-Mamba on Peptides-struct with the published hyper-parameters; needs --data-root."),
    ("pascalvoc-sp", "Graph-Mamba on PascalVOC-SP with the published hyper-parameters; needs --data-root."),
    ("coco-sp", "Graph-Mamba on COCO-SP with the published hyper-parameters; needs --data-root."),
    ("pcqm-contact", "Graph-Mamba on PCQM-Contact with the published hyper-parameters; needs --data-root."),
    ("zinc-12k", "Graph-Mamba on ZINC-12k, a starting point; needs --data-root."),
    ("zinc-12k-gin-mamba", "GIN+ with a BiMamba beside every third convolution, on ZINC-12k; needs --data-root."),
    ("minesweeper", "Graph-Mamba on minesweeper, ten splits, a starting point; needs --data-root."),
    ("tolokers", "Graph-Mamba on tolokers, ten splits, a starting point; needs --data-root."),
)

DATASETS = tuple(
    Dataset(
        name=name,
        domain="graph",
        summary=summary,
        target=f"{_PACKAGE}.{target}",
        config=f"{_PACKAGE}.config:{config}Config",
        extra="graph",
    )
    for name, target, config, summary in _DATASETS
)
TASKS = tuple(
    Task(
        name=name,
        domain="graph",
        summary=summary,
        target=f"{_PACKAGE}.task:{stem}",
        config=f"{_PACKAGE}.config:{stem}Config",
        extra="graph",
    )
    for name, stem, summary in _TASKS
)
PRESETS = tuple(
    Preset(name=name, domain="graph", summary=summary, target=f"{_PACKAGE}:{name.replace('-', '_')}", extra="graph")
    for name, summary in _PRESETS
)
