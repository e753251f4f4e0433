"""The protocol as a whole: transcripts and the rules that privacy rests on."""
