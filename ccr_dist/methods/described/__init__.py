"""DASD whose core generator is taught by descriptions (privileged information). Not from a paper.

A translated caption is short and noisy; a description of its item, written by a multimodal LLM, says in clean English
what the caption is about. Queries have none, so the generator may learn from descriptions but not depend on them. In
training, and there alone, a description is compressed into slots (LECCR's, over frozen states of the English text
tower) and their mean s shifts the code of the generator:

    z = W_z [f_sr; f_sa]      z* = z + W_d s      teacher = mean over the code's width of (z - stopgrad z*)^2

z* makes a second set of cores, the frozen tower with these gives the taught feature, and it has the alignment losses of
the caption's own. So W_d s learns what the caption's cores lack, and z is drawn there by what it sees of the caption
alone. A shift of the code is the simplest form in which student and teacher share everything else: a teacher of its own
could go its own way, and a coin between the two would leave the student without its losses in half of the batches. W_d
starts at zero, where the method is DASD. Training passes the tower twice, queries once; slots and W_d are not deployed.

z* moves along with z, so the teacher's pull W_d s does not end until descriptions say nothing more: at a weight of 1 it
drags codes away from what captions alone can do, and costs recall (emoji14); therefore 0.1.
"""
